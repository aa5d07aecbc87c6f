"""A run as its folder tells it, whoever started it, and whether or not it is done."""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlmodules.reports.files import Progress
from rlmodules.resuming.changes import Settings

Row = Mapping[str, float]
Point = tuple[float, float]
METRICS, SAMPLES = "csv/metrics.csv", "samples"
UNITS = ("iteration", "step")


@dataclass(frozen=True, eq=False)
class Run:
    """What a folder says of a run.

    Attributes:
        folder: of the run.
        settings: resolved, by option: ``{"algo.learning_rate": 1e-5, "seed": 0}``; empty if the run
            ended before it had any.
        overrides: what it was started with: ``("algo=ppo", "seed=1")``.
        choices: groups -> what was chosen of them: ``{"algo": "ppo", "env": "math"}``.
        named: options that are written as interpolations -> the options that these name.
        status: ``done``, ``failed`` (it said what went wrong) or ``unfinished`` (paused, running,
            or ended without a word).
        report: ``report.json``, as it stands there; empty if the run is not done.
        result: the optimized metric, ``{"metric": "val/reward", "value": 0.2}``.
        progress: how far it is, if it says so.
        error: the last line of what went wrong, or what an unfinished job printed last.
        number: of a sweep's job.
        start: what it was made of, versions, commit and machine; empty if nothing says so.
    """

    folder: Path
    settings: Settings = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    named: Mapping[str, list[str]] = field(default_factory=dict)
    status: str = "unfinished"
    report: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    error: str = ""
    number: int | None = None
    start: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.resolve().name

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.status == "done"

    @property
    def seed(self) -> int | None:
        """What it was seeded with; None if nothing says so."""
        seed = self.settings.get("seed", dict(map(parted, self.overrides)).get("seed"))
        return int(seed) if isinstance(seed, int | str) and str(seed).isdecimal() else None

    @property
    def seconds(self) -> float | None:
        """How long it has run, interruptions left out where they are known."""
        told = self.progress.seconds if self.progress else None
        found = self.report.get("seconds", told) if self.done else told
        return None if found is None else float(found)

    @property
    def history(self) -> Sequence[Row]:
        """What was logged at the end of each iteration, or after each optimizer step."""
        return self.report.get("history", ())

    @cached_property
    def rows(self) -> list[dict[str, float]]:
        """All that the CSV logger wrote, a row a logging; empty if it was not on."""
        return read_metrics(self.folder / METRICS)

    @property
    def unit(self) -> str:
        """What its history counts: ``iteration`` or ``step``."""
        if self.progress:
            return self.progress.unit
        online = any("iteration" in row for row in self.history or self.rows)
        return UNITS[0] if online or "algo.num_iterations" in self.settings else UNITS[1]

    @property
    def length(self) -> float | None:
        """How many units of its history are behind it."""
        if self.progress:
            return self.progress.done
        found = [row[self.unit] for row in self.history or self.rows if self.unit in row]
        return max(found) if found else None

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all metrics that it logged."""
        latest = self.progress.metrics if self.progress else {}
        parts = (*self.history, *self.rows, *self._evaluations(), self._after, latest)
        named = [self.result["metric"]] if self.result.get("value") is not None else []
        return sorted({name for part in parts for name in part if "/" in name} | set(named))

    def curve(self, metric: str, x: str | None = None) -> list[Point]:
        """``(x, value)`` of a metric over the run, finite ones alone.

        Args:
            x: ``unit`` by default; ``tokens`` or ``episodes``, where they are logged.
        """
        along = x or self.unit
        points = placed(self.history, along, metric)
        if along == self.unit and metric.startswith("val/"):
            told = placed(self._evaluations(), along, metric)
            points = told | (points or placed(self.rows if len(told) < 2 else (), along, metric))
            if self.length is not None and metric in self._after:
                points[self.length] = self._after[metric]
        points = points or placed(self.rows, along, metric)
        return sorted((place, value) for place, value in points.items() if math.isfinite(value))

    def value(self, metric: str) -> float | None:
        """A metric at the end of the run, or as it is now; None where it has none that is finite.

        A run's held-out figures are of its last evaluation, of others the last that was logged.
        """
        if self.result.get("metric") == metric:
            return finite(self.result.get("value"))
        if self.done and (metric in self._after or self.history):
            # One that is NaN is not in the report: what it was before is not what it is.
            return finite({**(self.history or [{}])[-1], **self._after}.get(metric))
        if curve := self.curve(metric):
            return curve[-1][1]
        return finite(self.progress.metrics.get(metric)) if self.progress else None

    def samples(self) -> dict[int, list[dict[str, str]]]:
        """What the model wrote at each evaluation, by iteration or optimizer step."""
        found = {}
        for path in sorted((self.folder / SAMPLES).glob("*.csv")):
            if place := re.fullmatch(r"(?:iteration|step)-(\d+)", path.stem):
                with path.open(newline="", encoding="utf-8") as file:
                    found[int(place[1])] = list(csv.DictReader(file))
        return found

    @property
    def _after(self) -> Row:
        return self.report.get("after", {})

    def _evaluations(self) -> list[dict[str, float]]:
        """Held-out metrics, each with its place in the run."""
        before = self.report.get("before", {})
        rows = [{self.unit: 0.0, **before}] if before else []
        rows += [dict(row) for row in self.report.get("evaluations", ())]
        if self.progress:
            rows += [{self.unit: float(at), **row} for at, row in self.progress.held_out]
        return rows


def parted(override: str) -> tuple[str, str]:
    """Option and value of an override: ``+algo.x=1`` -> ``("algo.x", "1")``."""
    name, _, value = override.partition("=")
    return name.lstrip("+~").partition("@")[0], value


def finite(value: float | None) -> float | None:
    """``value``, unless it is NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None


def placed(rows: Sequence[Row], along: str, metric: str) -> dict[float, float]:
    """Values of ``metric`` by where they stand, of the rows that have both."""
    return {row[along]: row[metric] for row in rows if along in row and metric in row}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV logger, empty cells left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file)]
