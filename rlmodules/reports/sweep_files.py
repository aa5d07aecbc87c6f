"""A comparison as files: ``sweep.csv``, ``sweep.json`` and ``sweep.html``."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from datamodules.atomic import replacing, write_text
from rlmodules.reports.comparison import Comparison, Row, compare
from rlmodules.reports.effects import effects_of
from rlmodules.reports.notes import notes_on
from rlmodules.reports.runs import Run
from rlmodules.reports.statistics import Estimate
from rlmodules.reports.sweep_page import write_sweep_page
from rlmodules.reports.table import show
from rlmodules.reports.winner import command_of

TABLE, DATA, PAGE = "sweep.csv", "sweep.json", "sweep.html"


def conclude(
    runs: Sequence[Run] | Sequence[str | Path],
    folder: Path,
    console: Console,
    metric: str | None = None,
    **options: Any,
) -> Comparison:
    """Compare a sweep's runs, print that to ``console`` and write it into ``folder``.

    Args:
        runs, metric, options: as of ``compare``.

    Raises:
        ValueError: as ``compare``.
    """
    comparison = compare(runs, metric, **options)
    show(comparison, console)
    for path in write(comparison, folder):
        console.print(Text(f"Written: {path}"), soft_wrap=True)
    return comparison


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the comparison's files into ``folder``; returns them."""
    write_text(folder / DATA, json.dumps(as_data(comparison), indent=1, allow_nan=False))
    rows = [as_record(comparison, row) for row in comparison.rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(folder / TABLE) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    write_sweep_page(comparison, folder / PAGE)
    return [folder / name for name in (TABLE, DATA, PAGE)]


def as_record(comparison: Comparison, row: Row) -> dict[str, Any]:
    """A setting as a flat row, in full digits."""
    record = {"setting": row.name, **{n: _plain(v) for n, v in row.setting.values.items()}}
    for name, found in (("", row.mean), ("difference", row.difference)):
        name = f"{comparison.metric} {name}".strip()
        record |= {f"{name} {part}": value for part, value in _parts(found).items()}
    statuses = {status: row.count(status) for status in ("done", "failed", "unfinished")}
    record |= {"worse than best": row.worse, **statuses, "seconds": row.seconds}
    record |= asdict(row.cost)
    seeds = sorted({seed for other in comparison.rows for seed in other.values})
    return record | {f"seed {seed}": row.values.get(seed) for seed in seeds if seed >= 0}


def as_data(comparison: Comparison) -> dict[str, Any]:
    """All that is known of the comparison, as JSON has it."""
    best, first = comparison.best, comparison.first
    return {
        "metric": comparison.metric,
        "direction": comparison.direction,
        "first": first and first.name,
        "best": best and best.name,
        "command": command_of(best) if best else "",
        "cannot_be_told_from_best": [row.name for row in comparison.tied],
        "notes": notes_on(comparison),
        "settings": [_setting(row, comparison.metric) for row in comparison.rows],
        "effects": [asdict(effect) for effect in effects_of(comparison)],
        "unplaced": [_run(run, comparison.metric) for run in comparison.grouping.unplaced],
    }


def _setting(row: Row, metric: str) -> dict[str, Any]:
    return {
        "name": row.name,
        "values": {name: _plain(value) for name, value in row.setting.values.items()},
        "mean": row.mean and asdict(row.mean),
        "difference": row.difference and asdict(row.difference),
        "from_best": row.from_best and asdict(row.from_best),
        "worse_than_best": row.worse,
        "latest": row.latest,
        "seconds": row.seconds,
        "cost": asdict(row.cost),
        "runs": [_run(run, metric) for run in row.setting.runs],
    }


def _run(run: Run, metric: str) -> dict[str, Any]:
    return {
        "folder": str(run.folder),
        "seed": run.seed,
        "status": run.status,
        "value": run.value(metric),
        "seconds": run.seconds,
        "error": run.error,
    }


def _parts(estimate: Estimate | None) -> dict[str, float | None]:
    names = ("mean", "low", "high", "count")
    return {name: getattr(estimate, name) if estimate else None for name in names}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has none
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
