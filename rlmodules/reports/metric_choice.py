"""By which metric runs can be compared."""

from collections.abc import Sequence

from rlmodules.checks import meant
from rlmodules.reports.runs import Run


def common_metric(runs: Sequence[Run]) -> str:
    """What all runs were to optimize.

    Raises:
        ValueError: they were to optimize several, or none says what.
    """
    named = {run.result.get("metric") or run.settings.get("optimized_metric") for run in runs}
    metrics = sorted(name for name in named if name)
    if len(metrics) == 1:
        return metrics[0]
    told = f"they were to optimize {' and '.join(metrics)}" if metrics else "none says by which"
    raise ValueError(
        f"by which metric are these runs compared? {told.capitalize()}: name one that all have,"
        f" optimized_metric=...{_there(shared(runs))}"
    )


def require_metric(runs: Sequence[Run], metric: str) -> None:
    """
    Raises:
        ValueError: there are runs that are done, and none has the metric.
    """
    done = [run for run in runs if run.done]
    if not done or any(run.value(metric) is not None for run in done):
        return
    logged = sorted({name for run in done for name in run.metrics})
    if metric in logged:
        return  # it became no number in all of them, which the table says
    near = meant(metric, logged)
    raise ValueError(
        f"optimized_metric={metric!r} is not logged by any of these runs"
        f"{near or _there(shared(done))}"
    )


def shared(runs: Sequence[Run]) -> list[str]:
    """Metrics that all runs that are done have a value of, held-out ones first."""
    done = [run for run in runs if run.done]
    names = done[0].metrics if done else []
    found = [name for name in names if all(run.value(name) is not None for run in done)]
    return sorted(found, key=lambda name: (not name.startswith("val/"), name))


def _there(metrics: Sequence[str], most: int = 12) -> str:
    if not metrics:
        return ""
    rest = f" and {len(metrics) - most} more" if len(metrics) > most else ""
    return f" (all have {', '.join(metrics[:most])}{rest})"
