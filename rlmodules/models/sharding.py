"""Weights that are shared out over processes (FSDP2), and how they are whole again for a while.

A process keeps its share of each weight; layers are gathered as a forward or backward pass comes to
them. That happens inside the forward methods of a root alone: what reads a weight outside of them
reads a share.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from rlmodules.models.heads import backbone
from rlmodules.models.scoring import PolicyModel

FORWARDS = ("score", "values", "predictions", "divergence", "next_logits", "last_logits")
"""Methods of ``PolicyModel`` that compute, and that no other one of them calls: the weights are let
go when the inner of two such methods returns."""
# Nothing here writes into what a module returned.
warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
_gathered: WeakSet[nn.Module] = WeakSet()


def shard_policy(policy: PolicyModel, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
    """Share out a policy: its layers one by one, the rest with the root, the critic in float32.

    Args:
        dtype: that weights are gathered and computed with; None: their own.
    """
    if policy.value_head is not None:
        fully_shard(policy.value_head, mesh=mesh)
    _shard_layers(backbone(policy.base_model), mesh, dtype)
    fully_shard(policy, mesh=mesh, mp_policy=_in(dtype))
    for name in FORWARDS:
        register_fsdp_forward_method(policy, name)


def shard_body(body: nn.Module, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
    """Share out a transformer that is called as a whole; see ``shard_policy``."""
    _shard_layers(body, mesh, dtype)
    fully_shard(body, mesh=mesh, mp_policy=_in(dtype))


def shard_head(head: nn.Module, mesh: DeviceMesh) -> None:
    """Share out a head that is called by itself; it computes in its own type."""
    fully_shard(head, mesh=mesh)


def _shard_layers(body: Any, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
    for layer in _layers(body, set(getattr(body, "_no_split_modules", None) or ())):
        fully_shard(layer, mesh=mesh, mp_policy=_in(dtype))


def _layers(module: nn.Module, names: set[str]) -> Iterator[nn.Module]:
    """The parts that transformers says belong together on a device; the outermost ones."""
    for part in module.children():
        if type(part).__name__ in names:
            yield part
        else:
            yield from _layers(part, names)


def _in(dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    reduce = None if dtype is None else torch.float32
    return MixedPrecisionPolicy(dtype, reduce, cast_forward_inputs=False)


def require_shareable(module: nn.Module) -> None:
    """
    Raises:
        ValueError: there are weights that are not numbers one could share out.
    """
    for name, weight in module.named_parameters():
        if not weight.is_floating_point():
            raise ValueError(
                f"trainer=fsdp: {name} is quantized ({weight.dtype}), and cannot be shared out: use"
                " trainer=ddp, or leave model.quantization out"
            )


def require_all_sharded(module: nn.Module) -> None:
    """
    Raises:
        ValueError: there are weights that no process would share, and none keep equal.
    """
    left = [name for name, p in module.named_parameters() if not isinstance(p, DTensor)]
    if left:
        raise ValueError(
            f"trainer=fsdp: {type(module).__name__} has weights outside of what is shared out"
            f" ({', '.join(left[:3])}), which no process would keep equal to the others': use"
            " trainer=ddp"
        )


def units_of(module: nn.Module) -> list[FSDPModule]:
    """What is gathered and let go as one, parts after what holds them."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """All weights below ``module`` are whole in each process, for as long as the context lasts.

    All processes enter together; within, each computes by itself, without gradients: as many texts
    as it has, each of its own length. It costs the memory of the whole model, in the type that it
    is computed with. Where nothing is sharded, or all is whole already, nothing happens.
    """
    units = units_of(module)
    if not units or module in _gathered:
        yield
        return
    _gathered.add(module)
    try:
        _gather(module, units)
        yield
    finally:
        _gathered.discard(module)
        roots = _roots(module)
        for unit in units:
            unit.set_reshard_after_forward(unit not in roots, recurse=False)
            unit.reshard()


@contextlib.contextmanager
def shared_out(module: nn.Module) -> Iterator[None]:
    """Each process has its shares alone, also within ``gathered``, to which it goes back."""
    units = units_of(module)
    for unit in units:
        unit.reshard()
    yield
    if module in _gathered:
        _gather(module, units)


def _gather(module: nn.Module, units: list[FSDPModule]) -> None:
    for root in _roots(module):  # before any part of it: whoever is called first is taken for it
        root._get_fsdp_state()._lazy_init()
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def _roots(module: nn.Module) -> list[FSDPModule]:
    if isinstance(module, FSDPModule):
        return [module]
    return [root for part in module.children() for root in _roots(part)]


@contextlib.contextmanager
def assembled(module: nn.Module, here: bool) -> Iterator[None]:
    """The weights themselves, on the CPU, are in the places of their shares, to be written.

    All processes enter together, and what is read within is no place for a forward pass.

    Args:
        here: whether this process gets them; elsewhere all stays as it is.
    """
    units = units_of(module)
    if not units:
        yield
        return
    with shared_out(module):
        found: dict[nn.Parameter, nn.Parameter] = {}
        for weight in module.parameters():
            full = whole(weight.detach(), here)
            if full is not None:
                found[weight] = nn.Parameter(full, weight.requires_grad)
        places = _places(module) if here else []
        try:
            for owner, name, weight in places:
                owner._parameters[name] = found[weight]
            yield
        finally:
            for owner, name, weight in places:
                owner._parameters[name] = weight


def _places(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (owner, name, weight)
        for owner in module.modules()
        for name, weight in owner._parameters.items()
        if weight is not None
    ]


def whole(value: Any, here: bool) -> Any:
    """``value`` with whole tensors on the CPU in the place of shares, through dicts and lists.

    All processes ask together; None where it is not ``here``.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if here else None
    if isinstance(value, dict):
        found = {key: whole(part, here) for key, part in value.items()}
        return found if here else {}
    if isinstance(value, list | tuple):
        parts = [whole(part, here) for part in value]
        return type(value)(parts) if here else None
    return value.cpu() if isinstance(value, Tensor) else value


def share_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole tensor, as ``like`` is shared out; else the tensor itself."""
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    full = full.to(like.device, like.dtype)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
