"""The torch optimizer that a config names, over the parameters that it is given."""

import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlmodules.optimizers.config import OptimizerConfig, require_optimizer
from rlmodules.optimizers.masters import HALF, Masters, refuse_masters
from rlmodules.optimizers.muon import MuonAndAdamW, apart

Groups = list[dict[str, Any]]
Make = Callable[[Groups], Optimizer]


def make_optimizer(
    config: OptimizerConfig, groups: Groups, matrices: Collection[int] = ()
) -> Optimizer:
    """What ``config`` names; weights in half precision are stepped in float32 (``Masters``).

    Args:
        groups: parameters (``params``) with their ``lr`` and ``weight_decay``.
        matrices: ids of the parameters that Muon takes (``rlmodules.optimizers.muon.matrices``).

    Raises:
        ValueError: it is not installed, or cannot train these parameters.
    """
    weights = [p for group in groups for p in group["params"]]
    devices = {p.device.type for p in weights}
    for device in devices:
        require_optimizer(config.name, device)
    if config.name == "muon":
        groups = list(apart(groups, matrices))
    make, offloads = maker(config), config.name == "adamw_offload"
    if offloads and devices == {"cpu"}:
        warnings.warn(
            "algo.optimizer.name=adamw_offload saves nothing here, where the weights are on the CPU"
            " themselves: optimizer=adamw takes less",
            stacklevel=2,
        )
    half = any(p.dtype in HALF for p in weights)
    if half or config.name != "adamw":
        _refuse_shards(config.name, weights)
    if half or config.name in ("adamw8bit", "adamw_offload"):
        return Masters(groups, make, "cpu" if offloads else None)
    made = make(groups)
    made.register_load_state_dict_pre_hook(refuse_masters)
    return made


def maker(config: OptimizerConfig) -> Make:
    """What makes the optimizer of groups of parameters in float32."""
    settings: dict[str, Any] = {"betas": (config.betas[0], config.betas[1]), "eps": config.eps}
    if config.name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit  # an extra

        return partial(AdamW8bit, **settings)
    adamw: Make = partial(torch.optim.AdamW, **settings, fused=True)
    if config.name != "muon":
        return adamw
    muon: Make = partial(
        torch.optim.Muon,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
        adjust_lr_fn=config.adjust_lr_fn,
    )
    return partial(MuonAndAdamW, make_muon=muon, make_adamw=adamw)


def _refuse_shards(name: str, weights: list[Tensor]) -> None:
    """
    Raises:
        ValueError: the weights are sharded over processes, which only AdamW in float32 is known to
            step rightly.
    """
    from torch.distributed.tensor import DTensor

    if any(isinstance(p, DTensor) for p in weights):
        dtype = str(weights[0].dtype).removeprefix("torch.")
        raise ValueError(
            f"algo.optimizer.name={name} does not train weights in {dtype} that are sharded over"
            " processes: use optimizer=adamw and model.dtype=auto"
        )
