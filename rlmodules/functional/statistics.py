"""Statistics of right and wrong answers: intervals, pass@k, and whether a change is chance."""

import math
from collections.abc import Mapping


def wilson_interval(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson 1927); z = 1.96 covers 95%."""
    if count == 0:
        return 0.0, 1.0
    p, square = successes / count, z * z / count
    middle = (p + square / 2) / (1 + square)
    half = z * math.sqrt(p * (1 - p) / count + square / (4 * count)) / (1 + square)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of ``k`` attempts is right, from ``n`` of them.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    Raises:
        ValueError: there are fewer attempts than ``k``.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} attempts, there are {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def mcnemar_p(before: Mapping[int, bool], after: Mapping[int, bool]) -> float:
    """Two-sided exact p-value that both solve a problem equally often (McNemar 1947).

    Only problems that one of the two solves alone tell them apart; under the null hypothesis each
    goes either way with probability 1/2.
    """
    shared = before.keys() & after.keys()
    gained = sum(after[i] and not before[i] for i in shared)
    lost = sum(before[i] and not after[i] for i in shared)
    tail = sum(math.comb(gained + lost, i) for i in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (gained + lost))
