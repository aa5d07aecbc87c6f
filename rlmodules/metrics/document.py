"""Writes ``docs/metrics.md`` from the table: ``python -m rlmodules.metrics.document``."""

from pathlib import Path

from datamodules.atomic import write_text
from rlmodules.metrics.health import SYMPTOMS, Symptom
from rlmodules.metrics.metric import EVERY, Metric
from rlmodules.metrics.of_episodes import OF_EPISODES
from rlmodules.metrics.of_evaluations import OF_EVALUATIONS
from rlmodules.metrics.of_pairs import OF_PAIRS
from rlmodules.metrics.of_speed import OF_SPEED
from rlmodules.metrics.of_texts import OF_TEXTS
from rlmodules.metrics.of_updates import OF_UPDATES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
TOP = """\
# Metrics

Every number that a run logs: what it is, where it should be, what it means when it is not, and what
TRL 1.16.0 calls it (PPO, which it no longer has: 1.10's name). All loggers and `report.json` use
these names. Capitals in a name stand for a part that differs.

`rollout/` is of the episodes that an iteration learns from, `train/` of its updates, `val/` held
out, `time/` of the clock. A metric that does not exist (the mean of nothing) is left out, never 0.

Written by `python -m rlmodules.metrics.document` from `rlmodules/metrics/`: change it there.
"""
HEALTH = """\
## The health check

What `rlmodules.metrics.health.check` finds in a run's metrics, the gravest first. Medians are of
the last three iterations, or of the last tenth of the steps where that is more; a run that is too
short to tell is healthy. Of 660 made-up healthy runs, noise included, none has one of these.
"""
SECTIONS = (
    (
        "Episodes",
        "PPO, and GRPO with its relatives (gspo, rloo, reinforce_plus_plus).",
        OF_EPISODES,
    ),
    ("Updates on episodes", "Means over an iteration's updates.", OF_UPDATES),
    ("Held-out episodes", "Sampled as in training, from prompts that are kept.", OF_EVALUATIONS),
    ("Texts", "SFT, and what all that learn from a fixed set have in common.", OF_TEXTS),
    ("Preferences", "DPO, ORPO and reward models, in training and held out.", OF_PAIRS),
    ("Optimizer, time and axes", "Of every algorithm.", OF_SPEED),
)


def page() -> str:
    """The whole of ``docs/metrics.md``."""
    parts = [TOP]
    for title, about, metrics in SECTIONS:
        parts.append(f"## {title}\n\n{about}\n")
        parts += map(entry, metrics)
    parts += [HEALTH, *map(symptom_entry, SYMPTOMS)]
    return "\n".join(parts)


def entry(metric: Metric) -> str:
    """What is said of one metric."""
    unit = f" ({metric.unit})" if metric.unit else ""
    better = {"up": " Higher is better.", "down": " Lower is better."}.get(metric.better, "")
    lines = [f"- logged by {logged(metric)}"]
    for label, text in (
        ("healthy", metric.healthy),
        ("otherwise", metric.otherwise),
        ("TRL", metric.trl or "none"),
    ):
        if text:
            lines.append(f"- {label}: {text}")
    return "\n".join([f"### `{metric.name}`{unit}", "", metric.what + better, "", *lines, ""])


def symptom_entry(symptom: Symptom) -> str:
    """What is said of one symptom."""
    lines = [f"### `{symptom.name}`", "", symptom.rule, "", f"- means: {symptom.meaning}"]
    lines.append(f"- remedy: {symptom.remedy}")
    return "\n".join([*lines, *([f"- source: {symptom.source}"] if symptom.source else []), ""])


def logged(metric: Metric) -> str:
    """By which algorithms, and when."""
    by = "every algorithm" if set(metric.by) == set(EVERY) else ", ".join(metric.by)
    return f"{by}, {metric.when}" if metric.when else by


if __name__ == "__main__":
    write_text(PAGE, page())
    print(PAGE)
