"""How several processes train one model: each with all of it, or each with a share of it.

Both end a run when a process does not answer for ``timeout_s``: a machine that is gone is noticed
then at the latest. Checkpoints are the same, one file that is gone on from by any of them, with any
number of processes.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from rlmodules.models.sharding import share_of, shared_out, whole

TIMEOUT_S = 1800.0
"""Longer than one process waits for another in a healthy run: for the slowest reward, or for a
checkpoint to be written."""


def _timeout(timeout_s: float) -> timedelta:
    if not timeout_s > 0:
        raise ValueError(f"trainer.strategy.timeout_s={timeout_s!r} must be positive, in seconds")
    return timedelta(seconds=timeout_s)


class Replicated(DDPStrategy):
    """Each process has the whole model; gradients are averaged (``trainer=ddp``).

    Args:
        timeout_s: seconds that a process waits for the others before it gives the run up.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        # Critic warm-up and a KL early stop leave some parameters unused.
        super().__init__(find_unused_parameters=True, timeout=_timeout(timeout_s))


class Sharded(ModelParallelStrategy):
    """Each process has a share of weights, gradients and optimizer state (``trainer=fsdp``).

    Args:
        timeout_s: seconds that a process waits for the others before it gives the run up.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=_timeout(timeout_s))

    def setup_environment(self) -> None:
        processes = self.num_nodes * self.num_processes
        self._data_parallel_size, self._tensor_parallel_size = processes, 1
        super().setup_environment()

    @property
    def mesh(self) -> DeviceMesh:
        """All processes, as one group: a mesh of Lightning's would have groups of its own, which
        wait for half an hour whatever they are told."""
        group = torch.distributed.group.WORLD
        assert group is not None
        return DeviceMesh.from_group(group, self.root_device.type)

    # ------------------------------------- checkpoints, as one process writes and reads them

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained, whole, in the first process."""
        module = self.lightning_module
        assert module is not None
        with shared_out(module):
            state = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
            extra = {k: v for k, v in module.state_dict().items() if k.endswith("_extra_state")}
            return whole(state | extra, self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return whole(optimizer.state_dict(), self.is_global_zero)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        weights = dict(module.named_parameters())
        state = {
            name: share_of(full, weights[name]) if name in weights else full
            for name, full in checkpoint["state_dict"].items()
        }
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                index: {
                    name: share_of(x, weights[index]) if isinstance(x, torch.Tensor) else x
                    for name, x in held.items()
                }
                for index, held in saved["state"].items()
            }
            optimizer.load_state_dict(saved | {"state": state})


def computes_in(precision: str) -> torch.dtype | None:
    """The type that a Trainer's ``precision`` has weights computed with; None for their own."""
    return torch.bfloat16 if precision == "bf16-mixed" else None
