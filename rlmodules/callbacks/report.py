"""The end of a run: a summary, what changed, and where things are."""

import json
import math
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.atomic import replacing
from rlmodules.callbacks.plots import plot_iterations
from rlmodules.callbacks.position import REPORT, is_whole_epoch
from rlmodules.callbacks.samples import SampleTable
from rlmodules.functional.statistics import mcnemar_p


class Report(Checkpoint):
    """Collects a run's metrics; at the end prints and writes the report.

    Files: ``report.json`` (the last that a run writes), ``report.txt``, ``curves.png``.
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
        self._print(Console(), trainer)

    def write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write ``report.txt`` and ``report.json``."""
        report = {"before": self.before, "after": self.after, "seconds": self.seconds}
        report |= self.details(trainer, pl_module)
        if self.rounded:
            report |= {"measured": self.measured, "exported": self.exported}
        report |= {"global_step": trainer.global_step, "history": self.history}
        with replacing(self.dirpath / "report.txt") as partial, partial.open("w") as file:
            self._print(Console(file=file, width=110, force_jupyter=False), trainer)
        with replacing(self.dirpath / REPORT) as partial:  # the last of all
            partial.write_text(json.dumps(existing(report), indent=1, allow_nan=False))

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
            REPORT: "this report and every logged metric",
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


class RunReport(Report):
    """The report of an online algorithm: reward, KL and repetition, samples before and after."""

    title = "Held-out prompts"
    held_out: ClassVar = {
        "val/reward": "reward",
        "val/pass@1": "solved in one attempt (pass@1)",
        "val/kl": "KL to the reference (nats a token)",
        "val/distinct_bigrams": "distinct bigrams",
        "val/response_length": "response length (tokens)",
    }
    files: ClassVar = {
        "curves.png": "reward, KL and repetition over the run",
        "samples": "held-out samples at each evaluation",
    }

    def __init__(self, dirpath: str) -> None:
        super().__init__(dirpath)
        self._evaluated = False
        self._solved: list[dict[int, bool]] = []  # of the first and of the last evaluation

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._evaluated = not trainer.sanity_checking
        if self._evaluated and pl_module.held_out.solved:
            self._solved = [*self._solved[:1], dict(pl_module.held_out.solved)]

    def labels(self) -> dict[str, str]:
        several = sorted(key for key in self.after if key.startswith("val/pass@"))
        return self.held_out | {k: k[4:] for k in several if k not in self.held_out}

    def held_out_changed(self) -> None:
        super().held_out_changed()
        self._solved = []

    def details(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        if len(self._solved) < 2:
            return {}
        before, after = self._solved
        return {
            "solved_before": sum(before.values()),
            "solved_after": sum(after.values()),
            "problems": len(after),
            "mcnemar_p": mcnemar_p(before, after),
        }

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_whole_epoch(trainer):
            return
        row = plain_metrics(trainer, "")  # also the held-out metrics of long ago
        row = {key: value for key, value in row.items() if not key.startswith("val/")}
        row |= self.after if self._evaluated else {}
        self._evaluated = False
        self.history.append(row)

    def body(self, console: Console, seconds: float, trainer: L.Trainer) -> None:
        last, coefficient = self.history[-1], self.history[-1].get("rollout/kl_coef")
        console.print(
            f"{len(self.history)} iterations in {seconds:.0f} s;"
            f" {mean_of(self.history, 'time/rollout_tokens_per_s'):.0f} tokens/s sampled,"
            f" {mean_of(self.history, 'time/update_tokens_per_s'):.0f} response tokens/s trained;"
            f" last training reward {_number(last.get('rollout/reward'), 3)}"
            + ("" if coefficient is None else f", KL coefficient {coefficient:.4f}")
        )
        solved = self.details(trainer, trainer.lightning_module)
        if solved:
            n = solved["problems"]
            console.print(
                f"First attempts at {n} held-out problems: {solved['solved_before']} right before"
                f" ({solved['solved_before'] / n:.1%}), {solved['solved_after']} after"
                f" ({solved['solved_after'] / n:.1%}); exact McNemar test, two-sided:"
                f" p = {solved['mcnemar_p']:.2g}"
            )
        self._print_samples(console, trainer)

    def _print_samples(self, console: Console, trainer: L.Trainer) -> None:
        samples = next((c for c in trainer.callbacks if isinstance(c, SampleTable)), None)
        if samples is None or not samples.before:
            return
        table = Table(title="What it writes", title_justify="left", show_lines=True)
        for column in ("prompt", "before", "after"):
            table.add_column(column, overflow="fold")
        pairs = list(zip(samples.before, samples.latest, strict=False))
        first = {old["prompt"]: (old, new) for old, new in reversed(pairs)}  # of several attempts
        for old, new in list(first.values())[::-1][:3]:
            table.add_row(_plain(old["prompt"]), *map(_sample, (old, new)))
        console.print(table)

    def plot(self, path: Path) -> None:
        plot_iterations(self.history, self.before, path)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"solved": self._solved, "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._solved, self._evaluated = state_dict["solved"], state_dict["evaluated"]


def _plain(text: str) -> Text:
    """What a model wrote is neither markup nor control codes to the terminal."""
    return Text("".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc"))


def _sample(row: dict[str, Any]) -> Text:
    return _plain(row["response"]).append(f"\nreward {_number(row['reward'], 2)}", style="dim")


def _number(value: float | None, places: int) -> str:
    return "(none applies)" if value is None else f"{value:.{places}f}"


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
