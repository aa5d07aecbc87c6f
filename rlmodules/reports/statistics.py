"""Means over seeds and what they can tell apart: Student's t, paired by seed.

A run's result is a draw: another seed, another result. The mean of n of them has the interval

    mean ± t(n - 1) · s / sqrt(n)          (Student 1908)

and two settings are compared by the differences of runs of the same seed, whose shared luck (the
same prompts in the same order) then cancels.

The best of several is picked because it looks best, which is partly luck. Where each of the others
is compared with it at 5% over their number (Hsu 1984, multiple comparisons with the best, by
Bonferroni), the chance that the truly best setting is called worse is at most 5%.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from scipy.special import stdtrit  # scipy.stats takes a second to import

Place = TypeVar("Place", bound=Hashable)
"""What two results share that are a pair: their seed, or all but one option."""
LEVEL = 0.95
"""How often an interval is to hold the true value."""
ROUNDING = 1e-6
"""Metrics are 32-bit floats: what differs by less, relative to their size, is the same number."""


@dataclass(frozen=True)
class Estimate:
    """A mean, how many values it is of, and the interval about it.

    Attributes:
        low, high: None where there is no interval: of a single value, and of values that are all
            the same number, which tell nothing about how far others would scatter.
    """

    mean: float
    count: int
    low: float | None = None
    high: float | None = None

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def estimate(
    values: Sequence[float], level: float = LEVEL, *, size: float | None = None
) -> Estimate | None:
    """The mean of finite ``values`` with its interval; None of none.

    Args:
        size: how large the numbers are that were rounded to get these; default: themselves.
    """
    if not values:
        return None
    mean, count = fmean(values), len(values)
    size = max(map(abs, values)) if size is None else size
    if count < 2 or max(values) - min(values) <= ROUNDING * size:
        return Estimate(mean, count)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, (1 + level) / 2)) * deviation / math.sqrt(count)
    return Estimate(mean, count, mean - half, mean + half)


def paired_difference(
    ours: Mapping[Place, float], theirs: Mapping[Place, float], level: float = LEVEL
) -> Estimate | None:
    """``ours`` minus ``theirs``, pair by pair, of those that both have; None if there is none."""
    both = [place for place in ours if place in theirs]
    size = max((abs(values[place]) for values in (ours, theirs) for place in both), default=0.0)
    return estimate([ours[place] - theirs[place] for place in both], level, size=size)


def beside_best(
    best: Mapping[int, float], others: Mapping[str, Mapping[int, float]], *, at_once: bool = False
) -> dict[str, Estimate | None]:
    """How far each of ``others`` is from ``best``.

    One whose interval lies on the worse side of zero is told from the best.

    Args:
        best, others: values by seed.
        at_once: have all intervals hold at the same time (Bonferroni), not each for itself.
    """
    level = 1 - (1 - LEVEL) / max(len(others), 1) if at_once else LEVEL
    return {name: paired_difference(values, best, level) for name, values in others.items()}
