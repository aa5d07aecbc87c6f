"""The end of a run: a summary, what changed, and where things are."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datamodules.atomic import replacing
from rlmodules.callbacks.position import REPORT
from rlmodules.callbacks.run_record import RunRecord
from rlmodules.reports.environment import read_start
from rlmodules.reports.run_page import PAGE, findings, run_of, write_run_page
from rlmodules.reports.runs import Run
from rlmodules.reports.verdict import verdict


class Report(Checkpoint):
    """Collects a run's metrics; at the end prints and writes the report.

    Files: ``report.json`` (the last that a run writes), ``report.txt``, ``report.html``,
    ``curves.png``. Of a run that is interrupted ``report.html`` says how far it came.
    (A ``Checkpoint``, because Lightning runs those after the module has logged.)

    Args:
        dirpath: the run's folder.
    """

    held_out: ClassVar[dict[str, str]]
    """Held-out metrics of the summary -> their label."""
    title: ClassVar[str]
    """Of the table of held-out metrics."""
    files: ClassVar[dict[str, str]] = {}
    """What an algorithm leaves beside the model -> what that is."""

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)
        self.history: list[dict[str, float]] = []
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.rounded = ""
        """To which type the numbers of the exported folder were rounded."""
        self.exported: dict[str, float] = {}
        """Held-out figures of the folder as it was written, where that rounded."""
        self._began = time.perf_counter()

    def body(self, console: Console, seconds: float, trainer: L.Trainer) -> None:
        """Print what follows the table of held-out metrics."""
        raise NotImplementedError

    def labels(self) -> dict[str, str]:
        """Metrics of the table of held-out metrics -> their label."""
        return self.held_out

    def plot(self, path: Path) -> None:
        """Draw the run."""
        raise NotImplementedError

    def details(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What ``report.json`` holds besides."""
        return {}

    def rows(self) -> list[dict[str, float]]:
        """All that was noted, by iteration or by step."""
        return self.history

    def metrics(self) -> dict[str, list[float]]:
        """Every metric as the list of its values."""
        rows = self.rows()
        names = sorted({name for row in rows for name in row} - {"step"})
        return {name: [row[name] for row in rows if name in row] for name in names}

    def latest(self) -> dict[str, float]:
        """The last value of what was noted, held out and in training."""
        return {**(self.history[-1] if self.history else {}), **self.after}

    def held_out_changed(self) -> None:
        """The next evaluation is the first: what was held out before is no measure for it."""
        self.before = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.after = plain_metrics(trainer, "val/")
            self.before = self.before or self.after

    @property
    def measured(self) -> str:
        """What the held-out figures are of, where that is not the exported folder itself."""
        said = "Before and after are of the model in training; the folder holds it rounded to"
        return f"{said} {self.rounded}." if self.rounded else ""

    def table(self) -> Iterator[tuple[str, list[float]]]:
        """Held-out metrics by label: before, after, and as the folder has them if it rounds."""
        columns = [self.before, self.after, *([self.exported] if self.exported else [])]
        for key, label in self.labels().items():
            if all(key in column for column in columns):
                yield label, [column[key] for column in columns]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.history or not trainer.is_global_zero:
            return
        self.seconds = time.perf_counter() - self._began
        self.dirpath.mkdir(parents=True, exist_ok=True)
        with replacing(self.dirpath / "curves.png") as partial:
            self.plot(partial)
        self.write(trainer, pl_module)
        print_verdict(Console(), self.run)
        self._print(Console(), trainer)

    def write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``report.txt`` and ``report.json``."""
        report = {"before": self.before, "after": self.after, "seconds": self.seconds}
        report |= self.details(trainer, pl_module)
        if self.rounded:
            report |= {"measured": self.measured, "exported": self.exported}
        report |= {"run": read_start(self.dirpath)}
        report |= {"global_step": trainer.global_step, "history": self.history}
        report |= rollbacks_of(trainer)
        report = existing(report)
        run = run_of(self.dirpath, report)
        with replacing(self.dirpath / "report.txt") as partial, partial.open("w") as file:
            console = Console(file=file, width=110, force_jupyter=False)
            print_verdict(console, run)
            self._print(console, trainer)
        write_run_page(run)
        with replacing(self.dirpath / REPORT) as partial:  # the last of all
            partial.write_text(json.dumps(report, indent=1, allow_nan=False))
        self.run = run

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Leave a page of what there is; nothing that fails here hides what ended the run."""
        if not (self.history and trainer.is_global_zero):
            return
        told = {"before": self.before, "after": self.after, "history": self.history}
        told |= {"run": read_start(self.dirpath)} | rollbacks_of(trainer)
        with suppress(Exception):
            run = run_of(self.dirpath, existing(told))
            write_run_page(replace(run, status="unfinished", error=_last_line(exception)))

    def add_exported(
        self, figures: dict[str, float], trainer: L.Trainer, pl_module: L.LightningModule
    ) -> None:
        """Say what the exported folder was measured at, in the report that is written already."""
        self.exported = figures
        self.write(trainer, pl_module)
        self._print_table(Console())

    def _print(self, console: Console, trainer: L.Trainer) -> None:
        self._print_table(console)
        self.body(console, self.seconds, trainer)
        console.print("Where things are:")
        places = {
            "model": "the trained model, in Hugging Face format",
            PAGE: "this report with curves, samples and single tokens: open it in a browser",
            REPORT: "every logged metric",
            **self.files,
            "checkpoints": "continue with ckpt_path=last",
        }
        for name, what in places.items():
            if name == REPORT or (self.dirpath / name).exists():
                console.print(f"  {self.dirpath / name}  [dim]{what}[/]", soft_wrap=True)

    def _print_table(self, console: Console) -> None:
        if not self.after:
            return
        table = Table(title=self.title, title_justify="left")
        headings = ["", "before", "after", "change", *(["as exported"] if self.exported else [])]
        for column in headings:
            table.add_column(column, justify="left" if column == "" else "right")
        for label, (old, new, *exported) in self.table():
            values = [f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}"]
            table.add_row(label, *values, *(f"{value:.3f}" for value in exported))
        console.print(table)
        console.print(self.measured, style="dim", end="\n" if self.measured else "")

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "before": self.before, "after": self.after}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]
        self.before, self.after = state_dict["before"], state_dict["after"]


def rollbacks_of(trainer: L.Trainer) -> dict[str, Any]:
    """Under ``rollbacks``, where the run was rolled back from and to; nothing if it never was."""
    records = [callback for callback in trainer.callbacks if isinstance(callback, RunRecord)]
    found = [rollback for record in records for rollback in record.rollbacks]
    return {"rollbacks": found} if found else {}


def print_verdict(console: Console, run: Run) -> None:
    """What came of a run, and what the health check says."""
    for sentence in verdict(run):
        console.print(escape(sentence), highlight=False)
    for finding in findings(run):
        console.print(escape(str(finding)), style="yellow", highlight=False)


def _last_line(error: BaseException) -> str:
    if not isinstance(error, Exception):  # a signal, Ctrl-C, a pause
        return "it was asked to stop"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def existing(value: Any) -> Any:
    """``value`` without the NaN and infinite numbers in its dicts, which REPORT does not have."""
    if isinstance(value, list):
        return [existing(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    there = {k: v for k, v in value.items() if not isinstance(v, float) or math.isfinite(v)}
    return {name: existing(inner) for name, inner in there.items()}


def plain_metrics(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    """Logged metrics whose names begin with ``prefix``."""
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}


def mean_of(history: list[dict[str, float]], key: str) -> float:
    """Mean over the rows that have ``key``."""
    values = [row[key] for row in history if key in row]
    return sum(values) / max(len(values), 1)
