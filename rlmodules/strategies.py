"""How several processes train one model: each with all of it, or each with a share of it.

Both end a run when a process does not answer for ``timeout_s``: a machine that is gone is noticed
then at the latest. Any of them goes on from the checkpoints of any, with any number of processes.
"""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from rlmodules.models.sharding import share_of, shared_out, whole
from rlmodules.resuming.saving_shares import require_one_disk, write_shares
from rlmodules.resuming.shares import Share, Shares, with_places
from rlmodules.resuming.torch_files import read_file

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
        save_distributed_checkpoint: each process writes its own share beside the checkpoint
            (``rlmodules.resuming.shares``); else all are gathered in the first, which writes one
            file.
    """

    def __init__(
        self, timeout_s: float = TIMEOUT_S, save_distributed_checkpoint: bool = True
    ) -> None:
        if not isinstance(save_distributed_checkpoint, bool):
            raise ValueError(
                f"trainer.strategy.save_distributed_checkpoint={save_distributed_checkpoint!r} must"
                " be true (a file a process) or false (one file)"
            )
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint, timeout=_timeout(timeout_s)
        )
        self._shares: Shares | None = None  # of the checkpoint that is gone on from

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

    def setup(self, trainer: L.Trainer) -> None:
        """
        Raises:
            ValueError: a checkpoint could not be written where it is to be.
        """
        if self._save_distributed_checkpoint and trainer.state.fn == TrainerFn.FITTING:
            folders = (getattr(each, "dirpath", None) for each in trainer.checkpoint_callbacks)
            for folder in sorted({str(folder) for folder in folders if folder}):
                require_one_disk(Path(folder))
        super().setup(trainer)

    # ------------------------------------------------------------ checkpoints

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What is trained: shares, or where one file is written, all of it in the first process."""
        module = self.lightning_module
        assert module is not None
        with shared_out(module):
            state = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
            extra = {k: v for k, v in module.state_dict().items() if k.endswith("_extra_state")}
        return self._to_be_saved(state | extra)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return self._to_be_saved(optimizer.state_dict())

    def _to_be_saved(self, state: dict[str, Any]) -> dict[str, Any]:
        if self._save_distributed_checkpoint:
            return state
        return whole(state, self.is_global_zero)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        if self._save_distributed_checkpoint:
            checkpoint = write_shares(checkpoint, Path(self.broadcast(str(filepath))))
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """All of one file; of shares their places, from which each process reads its own later."""
        checkpoint = read_file(checkpoint_path)
        self._shares = Shares.of(checkpoint, checkpoint_path)
        return checkpoint if self._shares is None else with_places(checkpoint)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        weights, state, beside = dict(module.named_parameters()), {}, {}
        for name, saved in checkpoint["state_dict"].items():
            if isinstance(saved, Share):
                beside[saved.key] = weights[name].detach()
            else:
                state[name] = share_of(saved, weights[name]) if name in weights else saved
        if self._shares is not None:
            self._shares.read(beside)
        module.load_state_dict(state, strict=strict and not beside)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p.detach() for group in optimizer.param_groups for p in group["params"]]
            beside: dict[str, torch.Tensor] = {}
            state = {
                index: {name: _own(x, weights[index], beside) for name, x in held.items()}
                for index, held in saved["state"].items()
            }
            if self._shares is not None:
                self._shares.read(beside)
            optimizer.load_state_dict(saved | {"state": state})


def _own(saved: Any, weight: torch.Tensor, beside: dict[str, torch.Tensor]) -> Any:
    """A process's share of what an optimizer keeps of ``weight``.

    Args:
        beside: takes what is still to be read, by its place in the checkpoint.
    """
    if isinstance(saved, Share):
        beside[saved.key] = torch.empty_like(weight, dtype=saved.dtype)
        return beside[saved.key]
    return share_of(saved, weight) if isinstance(saved, torch.Tensor) else saved


def computes_in(precision: str) -> torch.dtype | None:
    """The type that a Trainer's ``precision`` has weights computed with; None for their own."""
    return torch.bfloat16 if precision == "bf16-mixed" else None
