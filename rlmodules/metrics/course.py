"""How a run went: its metrics row by row, and what is asked of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Row = Mapping[str, float]
Point = tuple[int, float]
"""After how many iterations or optimizer steps, and a value."""

FEW = 3
"""Rows of which a median is the least that is believed: one odd iteration is no symptom."""


@dataclass(frozen=True)
class Course:
    """The metrics of one run, from its beginning to where it is.

    Attributes:
        rows: of training, one an iteration or an optimizer step, as in ``report.json``.
        held_out: evaluations: after how many rows, and their metrics; the first at 0. Those that
            stand in ``rows`` (online algorithms have them there) need not stand here again.
        settings: the run's options by their paths (``algo.kl_target``), as far as they are known.
    """

    rows: Sequence[Row]
    held_out: Sequence[tuple[int, Row]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_report(
        cls, report: Mapping[str, Any], settings: Mapping[str, Any] | None = None
    ) -> "Course":
        """Of what ``report.json`` holds."""
        rows, before, after = report.get("history", []), report["before"], report["after"]
        ends = [(0, before), (len(rows), after)]
        held_out = [(int(row["step"]), row) for row in report.get("evaluations", [])] or ends
        return cls(rows, [(at, row) for at, row in held_out if row], settings or {})

    @property
    def unit(self) -> str:
        """What a row is of."""
        return "step" if self.rows and "step" in self.rows[-1] else "iteration"

    def number(self, index: int) -> int:
        """Iterations or steps after which row ``index`` stands."""
        row = self.rows[index]
        return int(row.get(self.unit, row.get("iteration", index + 1)))

    def points(self, name: str) -> list[Point]:
        """The values of a metric that exist, in order; of ``val/`` those before training too."""
        found = dict(self._points(name))
        return sorted((at, value) for at, value in found.items() if math.isfinite(value))

    def _points(self, name: str) -> Iterator[Point]:
        yield from ((at, row[name]) for at, row in self.held_out if name in row)
        yield from ((self.number(i), row[name]) for i, row in enumerate(self.rows) if name in row)

    def window(self, points: Sequence[Point]) -> int:
        """How many points stand for a beginning or an end: three, or a tenth of many."""
        return max(FEW, len(points) // 10)

    def ends(self, name: str) -> tuple[float, float] | None:
        """Medians of a metric's first and last values; None where there are too few to tell."""
        points = self.points(name)
        width = self.window(points)
        if len(points) < 2 * width:
            return None
        first, last = points[:width], points[-width:]
        return median(v for _, v in first), median(v for _, v in last)

    def last(self, name: str) -> float | None:
        """The median of a metric's last values; None where there are too few."""
        points = self.points(name)
        width = self.window(points)
        return None if len(points) < width else median(v for _, v in points[-width:])


def began(points: Sequence[Point], is_ill: Any) -> int:
    """Since when a metric is as it is at the end: the first of its last unbroken ill values.

    Values between two ill ones that are not ill themselves are taken for noise if they are single.
    """
    since, healthy = points[-1][0], 0
    for at, value in reversed(points):
        healthy = 0 if is_ill(value) else healthy + 1
        if healthy > 1:
            break
        since = at if is_ill(value) else since
    return since


def trend(points: Sequence[Point]) -> tuple[float, float]:
    """Kendall's tau of a metric with time, from -1 to 1, and its p-value (two-sided)."""
    from scipy.stats import kendalltau  # a second's import, and not every run asks

    if len(points) < FEW or len({value for _, value in points}) == 1:
        return 0.0, 1.0
    result = kendalltau(*zip(*points, strict=True))
    return float(result.statistic), float(result.pvalue)
