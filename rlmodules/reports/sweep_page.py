"""``sweep.html``: a comparison in one file that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rlmodules.reports.charts import Chart, Series, curves, intervals, parallel
from rlmodules.reports.comparison import Comparison, Row
from rlmodules.reports.effects import Effect, effects_of
from rlmodules.reports.notes import notes_on
from rlmodules.reports.table import Digits, cells_of, said_of, shown, title_of
from rlmodules.reports.winner import command_of
from rlmodules.views.pages import write_page

BESIDE = (
    "rollout/reward",
    "val/kl",
    "rollout/kl",
    "val/distinct_bigrams",
    "val/loss",
    "train/loss",
)
"""What is drawn besides the metric, as far as it is logged: how it was come by."""
DRAWN, LINES = 4, 6
"""How many metrics have curves, and of how many settings at most."""

TOKENS = "tokens"
"""What all runs can be drawn over, where they count them."""


def write_sweep_page(comparison: Comparison, path: Path) -> None:
    """Write the page of ``comparison``."""
    headings, cells = cells_of(comparison)
    best = comparison.best
    write_page(
        path,
        "sweep.html",
        title=f"{len(comparison.runs)} runs, {len(comparison.rows)} settings",
        caption=title_of(comparison),
        headings=headings,
        rows=[
            {"cells": row, "best": r is best, "open": r.mean is None}
            for row, r in zip(cells, comparison.rows, strict=True)
        ],
        notes=notes_on(comparison),
        command=command_of(best) if best else "",
        curves=curve_charts(comparison),
        parallel=parallel_charts(comparison),
        effects=[effect_chart(effect, comparison) for effect in effects_of(comparison)],
        without=[(str(shown(r.folder)), said_of(r)) for r in comparison.runs if not r.done],
    )


def curve_charts(comparison: Comparison) -> list[Chart]:
    """Curves of the metric and of what explains it: the mean of a setting, its seeds behind it."""
    metrics = list(dict.fromkeys([comparison.metric, *BESIDE]))
    charts = (_curves(metric, comparison) for metric in metrics)
    return [chart for chart in charts if chart is not None][:DRAWN]


def _curves(metric: str, comparison: Comparison) -> Chart | None:
    shown = list(comparison.rows[:LINES])
    if comparison.first and comparison.first not in shown:
        shown[-1] = comparison.first
    x = axis_of(shown, metric)
    lines = [line for row in shown for line in _lines(row, metric, x)]
    if not lines:
        return None
    left_out = len(comparison.rows) - len(shown)
    said = f"The first {len(shown)} of the table"
    if shown[-1] is not comparison.rows[len(shown) - 1]:
        said = f"The first {len(shown) - 1} of the table and the sweep's first, {shown[-1].name}"
    note = f"{said}; {left_out} more are in the table." if left_out > 0 else ""
    return curves(metric, lines, x=x, note=note)


def _lines(row: Row, metric: str, x: str) -> list[Series]:
    """A thin line a seed, and their mean where all have a value."""
    found = [dict(run.curve(metric, x if x == TOKENS else None)) for run in row.setting.runs]
    found = [points for points in found if points]
    if not found:
        return []
    thin = [Series(row.name, list(p), list(p.values()), style="thin") for p in found]
    shared = sorted(set(found[0]).intersection(*found[1:]))
    mean = [fmean(points[place] for points in found) for place in shared]
    return [*(thin if len(found) > 1 else []), Series(row.name, shared, mean, style="points")]


def axis_of(rows: Sequence[Row], metric: str) -> str:
    """Over what curves are drawn: what the runs count; tokens, where the same count of that is
    another amount of work, as with batches of several sizes."""
    runs = [run for row in rows for run in row.setting.runs]
    units = {run.unit for run in runs}
    ends = [run.curve(metric, TOKENS) for run in runs if run.curve(metric)]
    if ends and all(ends):
        spent = [
            curve[-1][0] / max(run.length or 1, 1) for run, curve in zip(runs, ends, strict=False)
        ]
        if len(units) > 1 or max(spent) > 1.5 * min(spent):
            return TOKENS
    return " or ".join(sorted(units))


def parallel_charts(comparison: Comparison) -> list[Chart]:
    """The settings as lines through their values; none where they differ in one option alone."""
    names = comparison.grouping.names
    if len(names) < 2:
        return []
    rows = {
        row.name: {names[o]: v for o, v in row.setting.values.items()}
        | {comparison.metric: row.mean.mean}
        for row in comparison.rows
        if row.mean
    }
    note = f"A line a setting; blue is low in {comparison.metric}, orange is high."
    return (
        [parallel("Settings", rows, result=comparison.metric, note=note)] if len(rows) > 1 else []
    )


def effect_chart(effect: Effect, comparison: Comparison) -> Chart:
    """The mean of each value over all runs with it."""
    means = {v.name: (v.mean.mean, v.mean.low, v.mean.high) for v in effect.values}
    digits = Digits(v.difference for v in effect.values)
    gaps = [
        f"{v.name} {digits.said(v.difference, sign=True)} ({v.difference.count} pairs)"
        for v in effect.values
        if v.difference
    ]
    first = next((v.name for v in effect.values if v.difference is None), "")
    note = f"To {first}, all else equal: {', '.join(gaps)}." if gaps else ""
    return intervals(effect.name, means, x=comparison.metric, note=note)
