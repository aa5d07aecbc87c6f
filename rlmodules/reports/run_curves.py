"""Charts of one run: what is one quantity, in training and held out, is one chart."""

from collections.abc import Mapping, Sequence

from rlmodules.metrics.metric import Metric
from rlmodules.metrics.table import find
from rlmodules.reports import held_out
from rlmodules.reports.charts import Chart, Series, curves, spaced
from rlmodules.reports.runs import Run
from rlmodules.reports.statistics import estimate

FIRST = (
    "reward", "pass@1", "kl", "distinct_bigrams", "response_length", "entropy",
    "explained_variance", "loss", "accuracy", "margin", "logps_chosen", "clip_fraction",
    "equal_groups",
)  # fmt: skip
"""What is looked at first; the rest follows by name."""
SHOWN = 9
"""Charts that a page shows at once."""
POINTS = 1500
"""Most that a line keeps of a long run, evenly spaced."""
KINDS = {"rollout": "sampled", "train": "training", "val": "held out", "time": "time"}
"""Beginning of a metric's name -> what its line is called."""


def charts(run: Run) -> tuple[list[Chart], list[Chart]]:
    """Charts to look at first, and the others."""
    groups: dict[str, list[str]] = {}
    for metric in run.metrics:
        kind, _, name = metric.partition("/")
        if kind in KINDS and run.curve(metric):
            groups.setdefault(metric if kind == "time" else name, []).append(metric)
    first = [name for name in FIRST if name in groups][:SHOWN]
    others = [name for name in sorted(groups) if name not in first]
    bands = _bands(run)
    return tuple(  # type: ignore[return-value]
        [_chart(run, name, groups[name], bands) for name in names] for names in (first, others)
    )


def _chart(
    run: Run, name: str, metrics: Sequence[str], bands: Mapping[str, Mapping[float, tuple]]
) -> Chart:
    known = [row for metric in metrics if (row := find(metric)) is not None]
    row = known[0] if known else None
    lines = [_line(run, metric, bands.get(metric, {})) for metric in metrics]
    unit = row.unit if row else ""
    thinned = any(len(run.curve(metric)) > POINTS for metric in metrics)
    note = _note(row) + (f" {POINTS} points of each line are shown." if thinned else "")
    title = name.removeprefix("time/").replace("_", " ")
    return curves(title, lines, x=_along(run), y=unit, healthy=_healthy(known), note=note)


def _line(run: Run, metric: str, band: Mapping[float, tuple]) -> Series:
    points = spaced(run.curve(metric), POINTS)
    xs, ys = [x for x, _ in points], [y for _, y in points]
    ends = [band.get(x, (None, None)) for x in xs] if band else []
    low, high = ([end[i] for end in ends] if ends else None for i in (0, 1))
    kind = metric.partition("/")[0]
    evaluated = kind == "val"
    style = "points" if evaluated else "line"
    return Series(KINDS[kind], xs, ys, low, high, style=style, smooth=not evaluated)


def _bands(run: Run) -> dict[str, dict[float, tuple]]:
    """Intervals about held-out means, over the prompts of each evaluation."""
    found: dict[str, dict[float, tuple]] = {"val/reward": {}, "val/kl": {}}
    for iteration, rows in run.samples().items():
        for name, measure in (("val/reward", held_out.reward), ("val/kl", held_out.kl)):
            told = estimate(list(held_out.by_prompt(rows, measure).values()))
            if told is not None:
                found[name][iteration] = (told.low, told.high)
    return found


def _along(run: Run) -> str:
    return "iteration" if run.unit == "iteration" else "optimizer step"


def _note(row: Metric | None) -> str:
    if row is None:
        return ""
    return row.what + (f" Healthy: {row.healthy}" if row.healthy else "")


def _healthy(rows: Sequence[Metric]) -> tuple[float | None, float | None] | None:
    ranges = {(row.low, row.high) for row in rows} - {(None, None)}
    return ranges.pop() if len(ranges) == 1 else None
