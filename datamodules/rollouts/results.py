"""What an environment returned, if it can be gone on with."""

from typing import Any

from datamodules.checks import is_finite
from datamodules.guard import Failure
from datamodules.rewards.functions import finite_number
from datamodules.types import StepResult


def checked_score(result: Any) -> tuple[float | None, dict[str, Any]] | Failure:
    """What ``score`` returned for one episode, if it can be used."""
    if isinstance(result, Failure):
        return result
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return Failure(TypeError(f"score gave {result!r}, expected (reward, dict of metrics)"))
    if result[0] is not None and finite_number(result[0]) is None:
        return Failure(ValueError(f"the reward {result[0]!r} is no finite number"))
    return _metrics_wrong(result[1]) or result


def _metrics_wrong(metrics: Any) -> Failure | None:
    """A failure where a metric is no number: means are taken of them."""
    for name, value in metrics.items():
        if not isinstance(name, str) or not (isinstance(value, bool) or is_finite(value)):
            what = f"the metric {name!r}={value!r} is no finite number: leave it out"
            return Failure(ValueError(what))
    return None


def checked(result: Any) -> StepResult | Failure:
    """What ``respond`` returned, if it can be gone on with."""
    if isinstance(result, Failure):
        return result
    if not isinstance(result, StepResult):
        return Failure(TypeError(f"respond returned {result!r}, which is no StepResult"))
    if finite_number(result.reward) is None:
        return Failure(ValueError(f"the reward {result.reward!r} is no finite number"))
    if not result.done and result.next_observation is None:
        return Failure(ValueError("the episode is not done, and there is no next_observation"))
    return _metrics_wrong(result.metrics) or result
