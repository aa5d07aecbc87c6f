"""What the model writes: a table of held-out prompts and responses at each evaluation."""

import csv
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.atomic import replacing
from rlmodules.trackers.rows import write_table

COLUMNS = ("prompt", "response", "reward", "kl")


class SampleTable(Callback):
    """Writes ``samples/iteration-N.csv`` (``step-N.csv``, where runs are counted in optimizer
    steps), and a table to every tracker that can show one.

    ``before`` and ``latest`` hold the rows of the first and of the last evaluation.

    Args:
        dirpath: the run's folder.
        rows: samples in a tracker's table; the files hold all.
        columns: what of a sample is shown.
    """

    def __init__(self, dirpath: str, rows: int = 16, columns: Sequence[str] = COLUMNS) -> None:
        self.dirpath, self.rows, self.columns = Path(dirpath) / "samples", rows, list(columns)
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
        path = self.dirpath / f"{_place(trainer, pl_module)}.csv"
        with replacing(path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.latest)
        shown = [{c: row.get(c) for c in self.columns} for row in self.latest[: self.rows]]
        write_table(trainer, pl_module, "samples", shown)

    def held_out_changed(self) -> None:
        """The next evaluation is the first."""
        self.before = []

    def state_dict(self) -> dict[str, Any]:
        return {"before": self.before, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.latest = state_dict["before"], state_dict["latest"]


def _place(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """Where in the run an evaluation stands, as a file is called."""
    fitting = trainer.state.fn == TrainerFn.FITTING
    if "examples" in getattr(pl_module, "counted", ()):
        return f"step-{trainer.global_step if fitting else 0:06d}"
    return f"iteration-{trainer.current_epoch + 1 if fitting else 0:04d}"


def print_samples(
    console: Console, trainer: L.Trainer, shown: Callable[[dict[str, Any]], Text]
) -> None:
    """Three prompts with what was written before and after, if there is a table of samples.

    Args:
        shown: a sample as it is printed.
    """
    samples = next((c for c in trainer.callbacks if isinstance(c, SampleTable)), None)  # type: ignore[attr-defined]  # Lightning's
    if samples is None or not samples.before:
        return
    table = Table(title="What it writes", title_justify="left", show_lines=True)
    for column in ("prompt", "before", "after"):
        table.add_column(column, overflow="fold")
    pairs = list(zip(samples.before, samples.latest, strict=False))
    first = {old["prompt"]: (old, new) for old, new in reversed(pairs)}  # of several attempts
    for old, new in list(first.values())[::-1][:3]:
        table.add_row(plain(old["prompt"]), *map(shown, (old, new)))
    console.print(table)


def plain(text: str) -> Text:
    """What a model wrote is neither markup nor control codes to the terminal."""
    return Text("".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc"))
