"""What the model writes: a table of held-out prompts, responses and rewards at each evaluation."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.atomic import replacing
from rlmodules.trackers.rows import write_table

COLUMNS = ("prompt", "response", "reward", "kl")


class SampleTable(Callback):
    """Writes ``samples/iteration-N.csv``, and a table to every tracker that can show one.

    ``before`` and ``latest`` hold the rows of the first and of the last evaluation.

    Args:
        dirpath: the run's folder.
        rows: samples in a tracker's table; the files hold all.
    """

    def __init__(self, dirpath: str, rows: int = 16) -> None:
        self.dirpath, self.rows = Path(dirpath) / "samples", rows
        self.before: list[dict[str, Any]] = []
        self.latest: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._rows += outputs or []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not self._rows or not trainer.is_global_zero:
            return
        self.latest = self._rows
        self.before = self.before or self.latest
        iteration = trainer.current_epoch + 1 if trainer.state.fn == TrainerFn.FITTING else 0
        path = self.dirpath / f"iteration-{iteration:04d}.csv"
        with replacing(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.latest)
        shown = [{c: row.get(c) for c in COLUMNS} for row in self.latest[: self.rows]]
        write_table(trainer, pl_module, "samples", shown)

    def held_out_changed(self) -> None:
        """The next evaluation is the first."""
        self.before = []

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.latest = state_dict["before"], state_dict["latest"]
