"""One progress bar for the whole run, with the metrics that tell how it goes."""

from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunBar(ProgressBar):
    """``UNIT 12/50 ━━━ reward 0.61  KL 0.12``, and what is going on.

    Without a terminal (a log file, CI) it prints plain lines instead.
    """

    unit: str
    metrics: ClassVar[dict[str, str]]
    """Those that are shown, by their labels."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._enabled = True
        self._printed = -1

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def counts(self, trainer: L.Trainer) -> tuple[int, int]:
        """How many units are done, of how many."""
        raise NotImplementedError

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn(self.unit),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        done, total = self.counts(trainer)
        self._task = self._progress.add_task("", total=total, completed=done)
        self._printed = done
        if self._progress.console.is_terminal:
            self._progress.start()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.show(trainer, "evaluating")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.print_line(trainer)
        self.show(trainer, "done")
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def show(self, trainer: L.Trainer, doing: str) -> None:
        """Update the bar."""
        if self._progress is not None:
            text = "  ".join(filter(None, (self._values(trainer), f"[dim]{doing}[/]")))
            done, _ = self.counts(trainer)
            self._progress.update(self._task, completed=done, description=text)

    def print_line(self, trainer: L.Trainer) -> None:
        """Where there is no terminal: one line, unless it would say the same again."""
        values, (done, total) = self._values(trainer), self.counts(trainer)
        progress = self._progress
        if progress is None or progress.console.is_terminal or not values:
            return
        if done != self._printed:
            print(f"{self.unit} {done}/{total}  {values}", flush=True)
        self._printed = done

    def _values(self, trainer: L.Trainer) -> str:
        values = trainer.callback_metrics
        labels = {label: name for label, name in self.metrics.items() if name in values}
        return "  ".join(f"{label} {values[name]:.3f}" for label, name in labels.items())

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class IterationBar(RunBar):
    """Iterations of an online algorithm, one line each."""

    unit = "iteration"
    metrics: ClassVar = {
        "reward": "rollout/reward",
        "KL": "rollout/kl",
        "beta": "rollout/kl_coef",
        "held-out": "val/reward",
        "pass@1": "val/pass@1",
    }

    def counts(self, trainer: L.Trainer) -> tuple[int, int]:
        return trainer.current_epoch, trainer.max_epochs

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.show(trainer, f"update {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.show(trainer, "sampling")
        self.print_line(trainer)


class StepBar(RunBar):
    """Optimizer steps of an offline algorithm, a line every twentieth of them."""

    unit = "step"
    metrics: ClassVar = {
        "loss": "train/loss",
        "accuracy": "train/accuracy",
        "margin": "train/margin",
        "held-out loss": "val/loss",
        "accuracy ": "val/accuracy",
    }

    def counts(self, trainer: L.Trainer) -> tuple[int, int]:
        return trainer.global_step, int(trainer.estimated_stepping_batches)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.show(trainer, "")
        done, total = self.counts(trainer)
        if done - self._printed >= max(total // 20, 1):
            self.print_line(trainer)
