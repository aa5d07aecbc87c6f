"""Held-out samples of two evaluations beside each other, prompt by prompt."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from rlmodules.reports.runs import Run
from rlmodules.reports.statistics import Estimate, estimate

Sample = Mapping[str, str]
Measure = Callable[[Sample], float | None]
Samples = Sequence[Sample]


def ends(run: Run) -> tuple[Samples, Samples] | None:
    """Samples of the first and of the last evaluation; None where there are no two."""
    found = run.samples()
    return (found[min(found)], found[max(found)]) if len(found) > 1 else None


def reward(row: Sample) -> float | None:
    """What the response was paid; None where no reward applies."""
    return _number(row.get("reward"))


def kl(row: Sample) -> float | None:
    """Of policy and reference, in nats a token of the response."""
    return _number(row.get("kl"))


def distinct(row: Sample) -> float | None:
    """Different word pairs of the response over all of them; None where it has no pair."""
    pairs = list(itertools.pairwise(row["response"].lower().split()))
    return len(set(pairs)) / len(pairs) if pairs else None


def by_prompt(rows: Samples, measure: Measure) -> dict[str, float]:
    """The mean over its attempts of each prompt, as far as it has any."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if (value := measure(row)) is not None:
            found.setdefault(row["prompt"], []).append(value)
    return {prompt: fmean(values) for prompt, values in found.items()}


def mean(rows: Samples, measure: Measure) -> Estimate | None:
    """The mean over prompts with its interval; None where nothing is measured."""
    return estimate(list(by_prompt(rows, measure).values()))


def change(before: Samples, after: Samples, measure: Measure) -> Estimate | None:
    """The mean change of a prompt with its interval: the same prompts, so that what makes one
    harder than another has no part in it."""
    old, new = by_prompt(before, measure), by_prompt(after, measure)
    both = [prompt for prompt in old if prompt in new]
    size = max((abs(x[prompt]) for x in (old, new) for prompt in both), default=0.0)
    return estimate([new[prompt] - old[prompt] for prompt in both], size=size)


def _number(text: str | None) -> float | None:
    return float(text) if text else None
