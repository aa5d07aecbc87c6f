"""Runs beside each other: a row a setting over its seeds, the best one, and what it is better than.

``compare`` computes, ``Comparison`` holds the result; ``table.py`` prints it, ``sweep_files.py``
writes it down.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean

from rlmodules.metrics.table import better
from rlmodules.reports.costs import Cost, cost_of
from rlmodules.reports.differences import Grouping, Setting, group
from rlmodules.reports.metric_choice import common_metric, require_metric
from rlmodules.reports.reading import read_runs
from rlmodules.reports.runs import Run
from rlmodules.reports.statistics import Estimate, beside_best, estimate, paired_difference

DIRECTIONS = {"maximize": "up", "minimize": "down"}


@dataclass(frozen=True)
class Row:
    """A setting's results.

    Attributes:
        values: the metric of the runs that are done, by seed.
        mean: of these; None if there are none.
        difference: to the first setting that has a result, run by run of the same seed; None of
            that one itself, and where no seed is shared.
        from_best: the same to the best setting; None of the best itself.
        worse: whether that tells it from the best.
        surely_worse: whether it does so with intervals that hold for all settings at once.
        seconds: mean of the runs that are done.
        cost: of all runs, those without a result too.
        latest: the metric where nothing is done, as it was last; else None.
    """

    setting: Setting
    values: Mapping[int, float]
    mean: Estimate | None
    difference: Estimate | None
    from_best: Estimate | None
    worse: bool
    surely_worse: bool
    seconds: float | None
    cost: Cost
    latest: float | None

    @property
    def name(self) -> str:
        """Of the setting."""
        return self.setting.name

    def count(self, status: str) -> int:
        """How many of its runs are ``done``, ``failed`` or ``unfinished``."""
        return sum(run.status == status for run in self.setting.runs)


@dataclass(frozen=True)
class Comparison:
    """Settings from the best to the worst; those of which runs are missing, and then those without
    any result, come last.

    Attributes:
        metric: what they are compared by.
        direction: ``up`` or ``down``, where better values lie; empty if nothing says so: then the
            highest come first, and none is called best.
        grouping: which runs are of which setting, and in what these differ.
        rows: a setting each.
    """

    metric: str
    direction: str
    grouping: Grouping
    rows: tuple[Row, ...]

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        placed = [run for setting in self.grouping.settings for run in setting.runs]
        return [*placed, *self.grouping.unplaced]

    @property
    def best(self) -> Row | None:
        """The setting with the best mean, of those that lack no run, if there are such."""
        first = self.rows[0] if self.rows else None
        return first if first and first.mean and self.direction else None

    @property
    def first(self) -> Row | None:
        """The one that the others' differences are to: the first with a result."""
        in_order = sorted(self.rows, key=lambda row: self.grouping.settings.index(row.setting))
        return next((row for row in in_order if row.mean), None)

    @property
    def tied(self) -> list[Row]:
        """Settings that cannot be told from the best one."""
        return [row for row in self.rows[1:] if self.best and row.mean and not row.worse]


def compare(
    runs: Sequence[Run] | Sequence[str | Path],
    metric: str | None = None,
    *,
    direction: str = "",
    price_per_hour: float | None = None,
) -> Comparison:
    """Compare runs, or those at and below folders, by ``metric``.

    Args:
        metric: default: the one that all were to optimize.
        direction: ``maximize`` or ``minimize``; default: where better values of the metric lie.
        price_per_hour: of a device; costs are in its currency besides.

    Raises:
        ValueError: there are no runs; those that are done have no such metric, or name none in
            common; or an argument is none that there is.
    """
    if direction not in ("", *DIRECTIONS):
        raise ValueError(f"direction={direction!r}: choose maximize or minimize")
    if price_per_hour is not None and not 0 < price_per_hour <= sys.float_info.max:
        raise ValueError(f"task.price_per_hour={price_per_hour} must be a finite number above 0")
    given = [run for run in runs if isinstance(run, Run)]
    read = given or read_runs([place for place in runs if not isinstance(place, Run)])
    metric = metric or common_metric(read)
    require_metric(read, metric)
    towards = DIRECTIONS.get(direction) or better(metric)
    grouping = group(read)
    unknown = count(1)
    values = [_by_seed(setting, metric, unknown) for setting in grouping.settings]
    order = _order(grouping.settings, values, towards)
    first: int = next((i for i, found in enumerate(values) if found), 0)
    best = values[order[0]] if order and values[order[0]] and towards else {}
    others = {str(i): values[i] for i in order[1:] if values[i]} if best else {}
    beside, at_once = beside_best(best, others), beside_best(best, others, at_once=True)
    rows = []
    for i in order:
        setting, ours = grouping.settings[i], values[i]
        gap = beside.get(str(i))
        rows.append(
            Row(
                setting=setting,
                values=ours,
                mean=estimate(list(ours.values())),
                difference=paired_difference(ours, values[first]) if i != first else None,
                from_best=gap,
                worse=_is_worse(gap, towards),
                surely_worse=_is_worse(at_once.get(str(i)), towards),
                seconds=_mean([run.seconds for run in setting.runs if run.done]),
                cost=cost_of(setting.runs, price_per_hour),
                latest=None if ours else _mean([run.value(metric) for run in setting.runs]),
            )
        )
    return Comparison(metric, towards, grouping, tuple(rows))


def _by_seed(setting: Setting, metric: str, unknown: Iterable[int]) -> dict[int, float]:
    """Values of the runs that are done; of several with one seed the last. Without one: below 0."""
    found = ((run.seed, run.value(metric)) for run in setting.runs if run.done)
    numbers = iter(unknown)
    return {
        -next(numbers) if seed is None else seed: value
        for seed, value in found
        if value is not None
    }


def _order(
    settings: Sequence[Setting], values: Sequence[Mapping[int, float]], towards: str
) -> list[int]:
    """Places of the settings, the best mean first.

    Those of which runs are missing come after all others: where bad runs break down, the mean of
    those that did not is too good.
    """
    sign = 1 if towards == "down" else -1

    def key(i: int) -> tuple[bool, bool, float]:
        seeds = {run.seed for run in settings[i].runs if run.seed is not None}
        missing = len(values[i]) < (len(seeds) or len(settings[i].runs))
        return not values[i], missing, sign * (_mean(values[i].values()) or 0.0)

    return sorted(range(len(settings)), key=key)


def _is_worse(gap: Estimate | None, towards: str) -> bool:
    """Whether all of the interval of a difference to the best is on the worse side of it."""
    if gap is None or gap.low is None or gap.high is None:
        return False
    return gap.high < 0 if towards == "up" else gap.low > 0


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
