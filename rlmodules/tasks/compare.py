"""``task=compare``: runs beside each other, from what is in their folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlmodules.reports.comparison import compare
from rlmodules.reports.sweep_files import conclude
from rlmodules.reports.table import show


def compare_runs(
    runs: Sequence[str] | str,
    *,
    metric: str | None = None,
    direction: str | None = None,
    price_per_hour: float | None = None,
    out: str | None = None,
) -> None:
    """Print how runs compare, a row a setting over its seeds, and which setting is best.

    Args:
        runs: folders of runs or of sweeps, or patterns: ``[outputs/A,'multirun/*/*']``.
        metric: what they are compared by; default: what all of them were to optimize.
        direction: ``maximize`` or ``minimize``; default: where better values of the metric lie.
        price_per_hour: of one device, to have costs in money too.
        out: also write ``sweep.csv``, ``sweep.json`` and ``sweep.html`` into this folder.

    Raises:
        ValueError: there is no such run, or they have no metric in common.
    """
    places = [runs] if isinstance(runs, str) else list(runs)
    options: dict[str, Any] = {"direction": direction or "", "price_per_hour": price_per_hour}
    if out is None:
        show(compare(places, metric, **options), Console())
    else:
        conclude(places, Path(out), Console(), metric, **options)
