"""Charts as data: what a page draws (``views/static/page.js``), and the same numbers as a table.

Nothing is drawn here. A chart is a dict that goes into the page as JSON, a table for whoever cannot
see it or runs no scripts, and a sentence on what it shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TABLE_ROWS = 200
"""Of a chart with more points, the table shows this many, evenly spaced."""


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: in the legend; series of one name share their colour and stand there once.
        x, y: its points; None or NaN is a gap.
        low, high: ends of an interval about each y, drawn as a band.
        style: ``line``; ``points`` (a line with its points marked: few, and none to be smoothed
            over); ``thin`` (one seed's, behind the mean of all).
        smooth: whether it follows the page's smoothing.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    style: str = "line"
    smooth: bool = False


@dataclass(frozen=True)
class Chart:
    """What a page draws.

    Attributes:
        title: what is measured, with its unit.
        kind: how it is drawn.
        data: what is drawn.
        headings, rows: the same as a table.
        note: what to see in it.
    """

    title: str
    kind: str
    data: dict[str, Any]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def drawn(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"kind": self.kind, "title": self.title} | self.data


def curves(
    title: str,
    series: Sequence[Series],
    *,
    x: str = "iteration",
    y: str = "",
    healthy: tuple[float | None, float | None] | None = None,
    note: str = "",
) -> Chart:
    """Lines over ``x``, with bands where they have intervals.

    Args:
        x, y: what the axes measure.
        healthy: a range that is shaded; None at an end: open there.
    """
    lines = [_finite(asdict(line)) for line in series]
    data = {"series": lines, "x": x, "y": y, "healthy": healthy}
    shown = [line for line in series if line.style != "thin"]
    columns = [dict(zip(line.x, line.y, strict=True)) for line in shown]
    places = sorted({place for column in columns for place in column})
    rows = [[number(p), *(number(c.get(p)) for c in columns)] for p in spaced(places)]
    return Chart(title, "curves", data, [x, *(line.name for line in shown)], rows, note)


def intervals(
    title: str,
    rows: Mapping[str, tuple[float, float | None, float | None]],
    *,
    x: str = "",
    zero: bool = False,
    note: str = "",
) -> Chart:
    """A point a row with the interval about it.

    Args:
        rows: value, and lower and upper end of its interval (None: there is none), by name.
        x: what is measured.
        zero: whether a line marks zero, which an interval that covers it cannot be told from.
    """
    values = [dict(zip(("value", "low", "high"), row, strict=True)) for row in rows.values()]
    points = [{"name": name} | _finite(row) for name, row in zip(rows, values, strict=True)]
    table = [[name, *map(number, row)] for name, row in rows.items()]
    headings = ["", x or "value", "from", "to"]
    return Chart(title, "intervals", {"rows": points, "x": x, "zero": zero}, headings, table, note)


def parallel(
    title: str, rows: Mapping[str, Mapping[str, Any]], *, result: str, note: str = ""
) -> Chart:
    """A line a row through parallel axes, an axis a column; coloured by the last, ``result``.

    Args:
        rows: values of the columns by name of the row. Numbers that span more than two orders of
            magnitude have a logarithmic axis; words stand in the order in which they come.
        result: the column that is wanted to be high or low. A row without it is left out.
    """
    kept = {name: row for name, row in rows.items() if number(row.get(result))}
    names = [*dict.fromkeys(key for row in kept.values() for key in row if key != result), result]
    axes = [Axis.over(name, [row.get(name) for row in kept.values()]) for name in names]
    lines = [
        {
            "name": label,
            "at": [axis.place(row.get(axis.name)) for axis in axes],
            "said": [said(row.get(axis.name)) for axis in axes],
        }
        for label, row in kept.items()
    ]
    data = {"axes": [asdict(axis) for axis in axes], "rows": lines}
    table = [[label, *(said(row.get(name)) for name in names)] for label, row in kept.items()]
    return Chart(title, "parallel", data, ["", *names], table, note)


@dataclass(frozen=True)
class Axis:
    """One of several parallel axes, from 0 (below) to 1.

    Attributes:
        name: of what it shows.
        scale: ``linear``, ``log`` or ``words``.
        ticks: where something is written beside it.
    """

    name: str
    scale: str
    low: float
    high: float
    words: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def over(cls, name: str, values: Sequence[Any]) -> "Axis":
        """The axis that holds ``values``."""
        there = [value for value in values if value is not None]
        if not all(_is_number(value) for value in there):
            words = tuple(dict.fromkeys(map(said, there)))
            axis = cls(name, "words", 0.0, float(max(len(words) - 1, 1)), words, ())
            marks: list[Any] = list(words)
        else:
            low, high = min(there, default=0.0), max(there, default=1.0)
            scale = "log" if low > 0 and high / low > 100 else "linear"
            axis = cls(name, scale, low, high, (), ())
            few = sorted(set(there))
            marks = few if len(few) <= 6 else [low, high]
        ticks = tuple((axis.place(mark), said(mark)) for mark in marks)
        return cls(name, axis.scale, axis.low, axis.high, axis.words, ticks)

    def place(self, value: Any) -> float | None:
        """Where ``value`` is on it; None where there is none."""
        if value is None:
            return None
        if self.scale == "words":
            at, low, high = float(self.words.index(said(value))), 0.0, self.high
        elif self.scale == "log":
            at, low, high = math.log(value), math.log(self.low), math.log(self.high)
        else:
            at, low, high = value, self.low, self.high
        return (at - low) / (high - low) if high > low else 0.5


def spaced(items: Sequence[Any], most: int = TABLE_ROWS) -> list[Any]:
    """At most ``most`` of ``items``, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def number(value: float | None) -> str:
    """``value`` in four digits; empty where there is none."""
    if value is None or not math.isfinite(value):
        return ""
    if value == int(value) and abs(value) < 1e9:
        return str(int(value))
    return f"{value:.4g}"


def said(value: Any) -> str:
    """``value`` as a user would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return number(value) if isinstance(value, int | float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` with None for numbers that JSON does not have, rounded to six digits."""

    def clean(value: Any) -> Any:
        if isinstance(value, str | bool) or value is None:
            return value
        if isinstance(value, Sequence):
            return [clean(inner) for inner in value]
        return float(f"{value:.6g}") if math.isfinite(value) else None

    return {name: clean(value) for name, value in row.items()}
