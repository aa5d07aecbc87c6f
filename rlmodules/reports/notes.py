"""What is to be known before a comparison is believed."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rlmodules.reports.comparison import Comparison, Row
from rlmodules.reports.runs import Run

FEW = 3
"""Seeds below which an interval says next to nothing."""
TASK = ("env", "reward", "data.path", "data.env", "data.eval")
"""Beginnings of options that change what is measured."""


def notes_on(comparison: Comparison) -> list[str]:
    """Sentences, the most important first."""
    parts = (_best, _seeds, _missing, _task, _same, _consequences, _origins, _unplaced, _costs)
    return [note for part in parts for note in part(comparison)]


def _best(comparison: Comparison) -> Iterator[str]:
    best, metric = comparison.best, comparison.metric
    with_mean = [row for row in comparison.rows if row.mean]
    if best is None:
        if with_mean:
            yield (
                f"Nothing says whether a higher {metric} is better: no setting is called the best."
                " Say it by task.direction=maximize or minimize."
            )
        return
    others, tied = len(with_mean) - 1, comparison.tied
    if not others:
        return
    many = f"{len(tied)} of {others} others" if others > 1 else ("The other" if tied else "None")
    yield (
        f"{many} cannot be told from the best, {best.name}: the interval of the difference to it,"
        " seed by seed, has zero in it, or there is none."
    )
    luck = others - sum(row.surely_worse for row in with_mean)
    if others > 1 and luck > len(tied):
        yield (
            f"It was picked as the best of {others + 1}, so that it looks better than it is. Where"
            f" all {others} intervals are to hold at once, {luck} cannot be told from it."
        )


def _seeds(comparison: Comparison) -> Iterator[str]:
    rows = [row for row in comparison.rows if row.mean]
    few = [row for row in rows if len(row.values) < FEW]
    if few:
        which = "Every setting" if len(few) == len(rows) else _listed([row.name for row in few], 3)
        yield (
            f"Fewer than {FEW} seeds: {which}. Of one there is no interval, of two it is"
            f" 12.7 standard errors wide to each side: take {FEW} or more (seed=0,1,2) before you"
            " choose."
        )
    best, most = comparison.best, max((len(row.values) for row in rows), default=0)
    if best and best.mean and len(best.values) < most:
        yield (
            f"The best, {best.name}, is the mean of {len(best.values)} where others have {most}: of"
            " fewer seeds, more is luck."
        )
    for row in rows:
        if best and best.mean and row.mean and _beats(row.mean.mean, best.mean.mean, comparison):
            yield (
                f"{row.name} has a better mean, but of those {len(row.values)} of its"
                f" {len(row.setting.runs)} runs that have a result: it is not called the best."
            )
    if len({frozenset(row.values) for row in rows}) > 1:
        counts = Counter(seed for row in rows for seed in row.values if seed >= 0)
        uneven = sorted(seed for seed, count in counts.items() if count < len(rows))
        named = f" (seeds {_listed(uneven)} not in all)" if uneven else ""
        yield (
            f"The settings do not have the same seeds{named}: means are of what each has,"
            " differences of the seeds that both have."
        )
    for row in comparison.rows:
        seeds = Counter(run.seed for run in row.setting.runs if run.done and run.seed is not None)
        if twice := sorted(seed for seed, count in seeds.items() if count > 1):
            yield (
                f"{row.name} has several runs with seed {_listed(twice)}: they are no two draws,"
                " and the last of them counts."
            )


def _beats(value: float, other: float, comparison: Comparison) -> bool:
    return value > other if comparison.direction == "up" else value < other


def _missing(comparison: Comparison) -> Iterator[str]:
    metric = comparison.metric
    without = [run for run in comparison.runs if run.done and run.value(metric) is None]
    if without:
        yield (
            f"{_listed([run.name for run in without])}: done, without {metric} or with one that is"
            " no number; left out of the means."
        )
    failed = [run for run in comparison.runs if run.status == "failed"]
    if failed:
        yield f"{len(failed)} of {len(comparison.runs)} runs failed and are left out of the means."
    under_way = [run for run in comparison.runs if run.status == "unfinished"]
    if under_way:
        yield f"{len(under_way)} of {len(comparison.runs)} runs are not done and are left out, too."


def _task(comparison: Comparison) -> Iterator[str]:
    names = [*comparison.grouping.names, *comparison.grouping.consequences]
    changed = [name for name in names if name.startswith(TASK)]
    if changed and not comparison.metric.startswith("time/"):
        yield (
            f"What is measured differs between the settings ({_listed(changed)}):"
            f" {comparison.metric} is not the same quantity in all of them."
        )


def _same(comparison: Comparison) -> Iterator[str]:
    """Settings whose results are equal to the last bit, so that an option did nothing."""
    seen: dict[tuple[tuple[int, float], ...], Row] = {}
    for row in comparison.rows:
        values = tuple(sorted((s, v) for s, v in row.values.items() if s >= 0))
        if not values:
            continue
        if values in seen:
            yield (
                f"{row.name} and {seen[values].name} have the same {comparison.metric} to the last"
                " digit with every seed: what differs may do nothing here."
            )
        seen.setdefault(values, row)


def _consequences(comparison: Comparison) -> Iterator[str]:
    if found := comparison.grouping.consequences:
        yield f"With that choice there also differ: {_listed(found)}."


def _origins(comparison: Comparison) -> Iterator[str]:
    """What was another program or machine, as far as runs say what they were made of."""
    starts = [run.start for run in comparison.runs if run.start]
    commits = {str((start.get("git") or {}).get("commit"))[:10] for start in starts} - {"None"}
    if len(commits) > 1:
        yield f"The runs are of several commits of the code: {_listed(sorted(commits))}."
    for package in dict.fromkeys(name for start in starts for name in start.get("versions", {})):
        versions = {start.get("versions", {}).get(package) for start in starts} - {None}
        if len(versions) > 1:
            yield f"The runs are of several versions of {package}: {_listed(sorted(versions))}."
    machines = {start.get("machine", {}).get("name") for start in starts} - {None}
    if len(machines) > 1:
        yield f"Times are of several machines: {_listed(sorted(machines))}."


def _unplaced(comparison: Comparison) -> Iterator[str]:
    if found := comparison.grouping.unplaced:
        names = _listed([run.name for run in found])
        yield f"Which setting is meant cannot be told of runs that ended at once: {names}."


def _costs(comparison: Comparison) -> Iterator[str]:
    unknown = [run for run in comparison.runs if run.seconds is None]
    if unknown and len(unknown) < len(comparison.runs):
        yield f"Costs leave out {len(unknown)} runs that do not say how long they took."
    left_open = [run for run in comparison.runs if _devices_are_open(run)]
    if left_open and any(row.cost.price is not None for row in comparison.rows):
        yield (
            f"{len(left_open)} runs leave their devices to the machine (trainer.devices=auto): one"
            " is counted of each."
        )


def _devices_are_open(run: Run) -> bool:
    return str(run.settings.get("trainer.devices", 1)) == "auto" and "machine" not in run.start


def _listed(names: Sequence[object], most: int = 8) -> str:
    """``a, b and 3 more``"""
    shown = ", ".join(map(str, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
