"""A module whose weights can be shared out over processes (``trainer=fsdp``).

Training computes on shares, in step. What each process computes by itself, as many texts as it has
of whatever length, it computes with whole weights: sampling, evaluation, reports.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import lightning as L
import torch
from torch.distributed.device_mesh import DeviceMesh

from rlmodules.models.reference import Reference, SameReference
from rlmodules.models.scoring import PolicyModel
from rlmodules.models.sharding import (
    assembled,
    gathered,
    require_all_sharded,
    require_shareable,
    shard_policy,
    units_of,
)
from rlmodules.sampling.ways import way_of
from rlmodules.strategies import Sharded, computes_in


class Shareable(L.LightningModule):
    """Shares its weights out where the Trainer's strategy is ``Sharded``."""

    def __init__(self) -> None:
        super().__init__()
        self._while_validating = ExitStack()

    def configure_model(self) -> None:
        """Share the weights out over the processes, once, where the Trainer's strategy is that.

        Raises:
            ValueError: there are weights that cannot be.
        """
        if self._trainer is None:  # as where a checkpoint is loaded for itself
            return
        strategy = self.trainer.strategy
        for unit in units_of(self):  # a forward pass may have left some of it whole
            unit.reshard()
        if isinstance(strategy, Sharded) and not units_of(self):
            require_shareable(self)
            self.shard(strategy.mesh, computes_in(self.trainer.precision))
            require_all_sharded(self)

    def shard(self, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
        """Share out all weights; see ``models/sharding.py``."""
        for policy in [part for part in self.modules() if isinstance(part, PolicyModel)]:
            if hasattr(self, "sampler"):  # looks at the weights to find out how to read rows
                way_of(policy)
            shard_policy(policy, mesh, dtype)
        for part in self.modules():
            if isinstance(part, Reference):
                part.share_nothing()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights are in each process within, which computes by itself, without gradients; all
        processes enter together."""
        borrowed = [part for part in self.modules() if isinstance(part, SameReference)]
        with ExitStack() as stack:
            for module in (self, *(held for part in borrowed for held in part.held)):
                stack.enter_context(gathered(module))
            yield

    def to_be_written(self) -> AbstractContextManager[None]:
        """All weights are in the first process within; all processes enter together."""
        return assembled(self, self.trainer.is_global_zero)

    def on_validation_start(self) -> None:
        self._while_validating.enter_context(self.whole())

    def on_validation_end(self) -> None:
        self._while_validating.close()
