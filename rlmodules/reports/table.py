"""A comparison on the terminal: the table, what is to be known of it, the best one's command."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlmodules.reports.comparison import Comparison, Row
from rlmodules.reports.costs import Cost
from rlmodules.reports.notes import notes_on
from rlmodules.reports.runs import Run
from rlmodules.reports.statistics import LEVEL, Estimate
from rlmodules.reports.winner import command_of

NEEDS = {"tokens": 100, "all runs": 80, "a run": 70}
"""Columns that a terminal shows if it is so wide."""
LISTED = 10
"""Runs without a result that are listed by name."""


def show(comparison: Comparison, console: Console, *, without: bool = True) -> None:
    """Print ``comparison``.

    Args:
        without: list runs without a result, too.
    """
    if comparison.rows:
        console.print(Text(title_of(comparison), "italic"))
        console.print(as_table(comparison, console.width))
    for note in notes_on(comparison):
        console.print(Text(note), style="yellow")
    missing = [run for run in comparison.runs if not run.done] if without else []
    if missing:
        console.print("Without a result:")
    for run in missing[:LISTED]:
        console.print(Text(f"  {shown(run.folder)}: {said_of(run)}"), soft_wrap=True)
    if len(missing) > LISTED:
        console.print(f"  and {len(missing) - LISTED} more")
    if comparison.best and (command := command_of(comparison.best)):
        said = "The best setting again:" if len(comparison.rows) > 1 else "The same again:"
        console.print(Text(said, "bold"))
        console.print(Text(f"  {command}"), soft_wrap=True)


def as_table(comparison: Comparison, width: int = 120) -> Table:
    """A row a setting, sorted.

    Args:
        width: of the terminal; a narrow one has fewer columns.
    """
    headings, rows = cells_of(comparison)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    kept = [i for i, name in enumerate(headings) if width >= NEEDS.get(name, 0)]
    for i in kept:
        table.add_column(
            headings[i], justify="right" if i else "left", overflow="fold", no_wrap=i > 0
        )
    for row, cells in zip(comparison.rows, rows, strict=True):
        style = "bold" if row is comparison.best else "" if row.mean else "dim"
        table.add_row(*(Text(cells[i]) for i in kept), style=style)
    return table


def title_of(comparison: Comparison) -> str:
    """What the numbers are."""
    wanted = {"up": " (higher is better)", "down": " (lower is better)"}
    said = f"{comparison.metric}{wanted.get(comparison.direction, '')} ± {LEVEL:.0%} interval"
    first, several = comparison.first, len(comparison.rows) > 1
    return f"{said}; difference to {spaced(first.name)}" if first and several else said


def spaced(name: str) -> str:
    """A setting's name with places where a line can end."""
    return name.replace(",", ", ")


def cells_of(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headings, and what stands below them, a row a setting."""
    rows, first = comparison.rows, comparison.first
    number, gap = Digits(row.mean for row in rows), Digits(row.difference for row in rows)
    costs = {name: cell for name, cell in COSTS.items() if any(cell(row.cost) for row in rows)}
    cells = []
    for row in rows:
        latest = f"({number.plain(row.latest)})" if row.latest is not None else ""
        cell = [spaced(row.name), number.said(row.mean) or latest]
        if len(rows) > 1:
            cell += ["first" if row is first else gap.said(row.difference, sign=True)]
            cell += [standing(comparison, row)]
        cell += [seeds_of(row), duration(row.seconds)]
        cells.append(cell + [cost(row.cost) for cost in costs.values()])
    beside = ["difference", ""] if len(rows) > 1 else []
    return ["setting", "mean", *beside, "seeds", "a run", *costs], cells


class Digits:
    """How the numbers of a column are written: the smallest interval shows two digits, the largest
    mean three."""

    def __init__(self, estimates: Iterable[Estimate | None]) -> None:
        known = [estimate for estimate in estimates if estimate is not None]
        halves = [estimate.half for estimate in known if estimate.half]
        largest = max((abs(estimate.mean) for estimate in known), default=0.0) or 1.0
        wanted = [(largest, 3), (min(halves), 2)] if halves else [(largest, 4)]
        places = [digits - 1 - math.floor(math.log10(size)) for size, digits in wanted]
        self.decimals = min(max(*places, 0), 6)

    def plain(self, value: float | None, *, sign: bool = False) -> str:
        """A number; empty where there is none."""
        return "" if value is None else f"{value:{'+' if sign else ''}.{self.decimals}f}"

    def said(self, estimate: Estimate | None, *, sign: bool = False) -> str:
        """``0.512 ± 0.031``; a single value alone; empty where there is none."""
        if estimate is None:
            return ""
        half = self.plain(estimate.half)
        return self.plain(estimate.mean, sign=sign) + (f" ± {half}" if half else "")


def standing(comparison: Comparison, row: Row) -> str:
    """What a row is beside the best one."""
    if comparison.best is None or row.mean is None:
        return ""
    return "best" if row is comparison.best else "worse" if row.worse else "like best"


def seeds_of(row: Row) -> str:
    """How many of its runs have a value: ``3``, or ``2 of 3``; the difference's, if fewer."""
    have, all_of_them = len(row.values), len(row.setting.runs)
    told = str(have) if have == all_of_them else f"{have} of {all_of_them}"
    pairs = row.difference.count if row.difference else have
    return told if pairs == have else f"{told} ({pairs} paired)"


def shown(folder: Path) -> Path:
    """``folder`` as seen from here, if it is below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def said_of(run: Run) -> str:
    """Why a run has no result."""
    if run.status == "failed":
        return f"failed: {run.error}"
    if run.progress is None:
        return "not begun or ended at once" + (f": {run.error}" if run.error else "")
    return f"{run.progress.unit} {run.progress.done} of {run.progress.total}"


def duration(seconds: float | None) -> str:
    """``48 s``, ``12 min``, ``3.4 h``; empty where there is none."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _count(value: float | None) -> str:
    if not value:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


COSTS: dict[str, Callable[[Cost], str]] = {
    "all runs": lambda cost: duration(cost.device_seconds),
    "tokens": lambda cost: _count(cost.tokens),
    "price": lambda cost: "" if cost.price is None else f"{cost.price:.2f}",
}
"""Columns of what all runs of a setting cost together."""
