"""The end of a run is always evaluated, whatever the interval of evaluations says."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class EvaluateAtEnd(Callback):
    """Has Lightning evaluate after the last batch of ``max_epochs`` or ``max_steps``.

    Modules attach it themselves (``configure_callbacks``). It counts on two rules of Lightning's:
    a run that is to stop is evaluated first, but only in epochs that are evaluated at all.
    """

    def __init__(self) -> None:
        self._every: int | None = None  # the Trainer's own setting while ours stands in for it

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        ends = last_epoch and batch_idx + 1 == trainer.num_training_batches
        if not ends and trainer.global_step != trainer.max_steps:
            return
        trainer.should_stop = True  # it does in any case
        if trainer.check_val_every_n_epoch is not None:  # None: every epoch may be evaluated
            self._every, trainer.check_val_every_n_epoch = trainer.check_val_every_n_epoch, 1

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._every is not None:
            trainer.check_val_every_n_epoch, self._every = self._every, None
