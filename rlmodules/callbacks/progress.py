"""One progress bar for the whole run: iterations, with the metrics that tell how it goes."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

WATCHED = {
    "reward": "rollout/reward",
    "KL": "rollout/kl",
    "beta": "rollout/kl_coef",
    "held-out": "val/reward",
}


class IterationBar(ProgressBar):
    """``iteration 12/50 ━━━ reward 0.61 KL 0.12 beta 0.05 held-out 0.58``, and what is going on.

    Without a terminal (a log file, CI) it prints one plain line an iteration instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(
            "sampling", total=trainer.max_epochs, completed=trainer.current_epoch
        )
        if self._progress.console.is_terminal:
            self._progress.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        done = f"update {batch_idx + 1}/{trainer.num_training_batches}"
        self._show(trainer, trainer.current_epoch, done)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, trainer.current_epoch, "evaluating")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._show(trainer, trainer.current_epoch, "sampling")
        progress = self._progress
        metrics = _watched(trainer)
        if progress is not None and not progress.console.is_terminal and metrics:
            print(f"iteration {trainer.current_epoch}/{trainer.max_epochs}  {metrics}", flush=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._progress is not None and not self._progress.console.is_terminal:
            print(f"iteration {trainer.current_epoch}/{trainer.max_epochs}  {_watched(trainer)}")
        self._show(trainer, trainer.current_epoch, "done")
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _show(self, trainer: L.Trainer, completed: int, doing: str) -> None:
        if self._progress is not None:
            text = "  ".join(filter(None, (_watched(trainer), f"[dim]{doing}[/]")))
            self._progress.update(self._task, completed=completed, description=text)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _watched(trainer: L.Trainer) -> str:
    seen = trainer.callback_metrics
    return "  ".join(f"{label} {seen[k]:.3f}" for label, k in WATCHED.items() if k in seen)
