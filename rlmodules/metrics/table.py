"""The one table of metrics: every number that any algorithm logs, and what it means.

It answers what a metric is (``find``), what an algorithm logs (``logged_by``, ``is_logged_by``) and
where better values lie (``better``), before anything is trained. ``docs/metrics.md`` is written
from it.
"""

from rlmodules.metrics.metric import EVERY, Metric
from rlmodules.metrics.of_episodes import OF_EPISODES
from rlmodules.metrics.of_evaluations import OF_EVALUATIONS
from rlmodules.metrics.of_pairs import OF_PAIRS
from rlmodules.metrics.of_speed import OF_SPEED
from rlmodules.metrics.of_texts import OF_TEXTS
from rlmodules.metrics.of_updates import OF_UPDATES

TABLE: tuple[Metric, ...] = (
    *OF_EPISODES,
    *OF_UPDATES,
    *OF_EVALUATIONS,
    *OF_TEXTS,
    *OF_PAIRS,
    *OF_SPEED,
)


def find(name: str) -> Metric | None:
    """The row of the metric ``name``: its own, else that of a pattern; None if there is none."""
    own = (metric for metric in TABLE if metric.name == name)
    patterns = (metric for metric in TABLE if metric.is_pattern and metric.matches(name))
    return next(own, None) or next(patterns, None)


def logged_by(algorithm: str) -> tuple[Metric, ...] | None:
    """The rows of an algorithm, by its module's name (``PPO``, ``rlmodules.PPO``).

    None for an algorithm of the user's own, of which nothing is known before it runs.
    """
    algorithm = algorithm.rsplit(".", 1)[-1]
    if algorithm not in EVERY:
        return None
    return tuple(metric for metric in TABLE if algorithm in metric.by)


def is_logged_by(algorithm: str, name: str) -> bool | None:
    """Whether an algorithm logs the metric ``name``, be it not in every run (``Metric.when``).

    None if nothing is known of the algorithm.
    """
    rows = logged_by(algorithm)
    return None if rows is None else any(row.matches(name) for row in rows)


def better(name: str) -> str:
    """``up`` or ``down``, where better values of the metric lie; empty where neither is, or where
    nothing is known of it."""
    metric = find(name)
    return metric.better if metric else ""
