"""How far a run is, in a file that whoever started it reads."""

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from rlmodules.callbacks.report import existing, plain_metrics
from rlmodules.sweeping.jobs import Progress, write_progress

EVERY = 2.0
"""Seconds between two files of a run that counts optimizer steps."""


class ProgressFile(Checkpoint):
    """Writes ``progress.json`` after each iteration and each evaluation; of steps, now and then.

    (A ``Checkpoint``, because Lightning runs those after the module has logged. List it before
    ``SaveLast``: what it knows belongs into the file.)

    Args:
        dirpath: the run's folder.
    """

    def __init__(self, dirpath: str | Path) -> None:
        self.dirpath = Path(dirpath)
        self._metrics: dict[str, float] = {}
        self._held_out: list[tuple[int, dict[str, float]]] = []
        self._before = 0.0  # seconds of the run until it was interrupted
        self._began = time.monotonic()
        self._written = float("-inf")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == TrainerFn.FITTING
        done = _done(trainer, pl_module, ended=True) if fitting else 0
        found = existing(plain_metrics(trainer, "val/"))
        self._held_out = [*(seen for seen in self._held_out if seen[0] != done), (done, found)]
        if fitting:
            self._write(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not _is_online(pl_module) and time.monotonic() - self._written > EVERY:
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, ended=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if trainer.training:
            self._write(trainer, pl_module, ended=getattr(exception, "epoch_ended", False))

    def _write(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *, ended: bool = False
    ) -> None:
        if not trainer.is_global_zero:
            return
        latest = plain_metrics(trainer, "") | getattr(pl_module, "step_metrics", {})
        self._metrics |= existing(latest)
        online = _is_online(pl_module)
        total = trainer.max_epochs if online else trainer.estimated_stepping_batches
        done = _done(trainer, pl_module, ended=ended)
        write_progress(
            self.dirpath,
            Progress(
                unit="iteration" if online else "step",
                done=done,
                total=int(total or 0),
                metrics=self._metrics,
                held_out=self._held_out,
                seconds=self._seconds(),
            ),
        )
        self._written = time.monotonic()

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        held_out = [[done, metrics] for done, metrics in self._held_out]
        return {"metrics": self._metrics, "held_out": held_out, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics, self._before = state_dict["metrics"], state_dict["seconds"]
        self._held_out = [(done, metrics) for done, metrics in state_dict["held_out"]]


def _is_online(pl_module: L.LightningModule) -> bool:
    return getattr(pl_module, "epochs_option", "") == "num_iterations"


def _done(trainer: L.Trainer, pl_module: L.LightningModule, *, ended: bool) -> int:
    """Iterations, or optimizer steps; within the hooks that end an epoch Lightning has not counted
    that one yet."""
    return trainer.current_epoch + ended if _is_online(pl_module) else trainer.global_step
