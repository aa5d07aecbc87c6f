"""What each swept value does, whatever the other options are."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlmodules.reports.comparison import Comparison, Row
from rlmodules.reports.names import short_value
from rlmodules.reports.statistics import Estimate, estimate, paired_difference

MANY = 8
"""Numbers of more than so many values are shown in quarters."""
Block = tuple[str, int]
"""What else a run is: its other options, and its seed."""


@dataclass(frozen=True)
class ValueEffect:
    """What came of a value.

    Attributes:
        name: the value, or a range of values.
        mean: over all runs with it, whatever else they were.
        difference: to the first value, between runs that are alike in all else, the seed too;
            None of the first, and where there are no such runs.
    """

    name: str
    mean: Estimate
    difference: Estimate | None = None


@dataclass(frozen=True)
class Effect:
    """What an option's values do."""

    option: str
    name: str
    values: tuple[ValueEffect, ...]


def effects_of(comparison: Comparison) -> list[Effect]:
    """An effect an option in which the settings differ, where two values or more have results."""
    rows = [row for row in comparison.rows if row.mean]
    found = (_effect(option, comparison, rows) for option in comparison.grouping.names)
    return [effect for effect in found if len(effect.values) > 1]


def _effect(option: str, comparison: Comparison, rows: Sequence[Row]) -> Effect:
    name = comparison.grouping.names[option]
    values = {_key(row.setting.values[option]): row.setting.values[option] for row in rows}
    numbers = [value for value in values.values() if _is_number(value)]
    if len(numbers) == len(values) > MANY:
        return Effect(option, name, tuple(_quarters(option, rows)))
    first = comparison.grouping.settings[0].values[option]
    ordered = sorted(values, key=lambda key: _place(values[key])) if numbers else list(values)
    blocks = {key: _blocks(option, key, rows) for key in ordered}
    start = _key(first) if _key(first) in blocks else ordered[0]
    effects = []
    for key in ordered:
        mean = estimate(list(blocks[key].values()))
        assert mean is not None
        gap = None if key == start else paired_difference(blocks[key], blocks[start])
        effects.append(ValueEffect(short_value(values[key]), mean, gap))
    return Effect(option, name, tuple(effects))


def _blocks(option: str, key: str, rows: Sequence[Row]) -> dict[Block, float]:
    """Results of the runs with a value, by all else that they are."""
    return {
        (_others(option, row), seed): value
        for row in rows
        if _key(row.setting.values[option]) == key
        for seed, value in row.values.items()
    }


def _others(option: str, row: Row) -> str:
    return _key({name: value for name, value in row.setting.values.items() if name != option})


def _quarters(option: str, rows: Sequence[Row]) -> list[ValueEffect]:
    """Means over the settings (not the runs) in each quarter of the values."""
    ordered = sorted(rows, key=lambda row: float(row.setting.values[option]))
    cuts = [round(len(ordered) * i / 4) for i in range(5)]
    effects = []
    for low, high in pairwise(cuts):
        part = ordered[low:high]
        mean = estimate([row.mean.mean for row in part if row.mean])
        ends = [short_value(float(f"{part[i].setting.values[option]:.2g}")) for i in (0, -1)]
        if mean is not None:
            effects.append(ValueEffect(" to ".join(ends), mean))
    return effects


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _place(value: Any) -> tuple[bool, float]:
    """Numbers in their order, words after them."""
    return (False, float(value)) if _is_number(value) else (True, 0.0)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
