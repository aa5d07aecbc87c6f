"""A trial and its jobs, one for each seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlmodules.sweeping.jobs import Job, Outcome, Running, read_progress, read_result

MOST_STOPS = 3


@dataclass
class Instance:
    """One seed of a trial.

    Attributes:
        held_out: what was evaluated after so many units.
        done, total: units; a run that has not begun does not know its total.
        values: the trial's metrics at the end of the run.
        tried_from: how far it was when it was last started; None before.
        stops: how often in a row it stopped, though nobody asked, and was no further.
    """

    seed: int
    job: Job
    held_out: dict[int, dict[str, float]] = field(default_factory=dict)
    done: int = 0
    total: int | None = None
    unit: str = "unit"
    values: tuple[float, ...] | None = None
    error: str = ""
    running: Running | None = None
    tried_from: int | None = None
    stops: int = 0

    def look(self) -> None:
        """Read how far its run is."""
        if progress := read_progress(self.job.folder):
            self.done, self.total, self.unit = progress.done, progress.total, progress.unit
            self.held_out = dict(progress.held_out)

    def finish(self, metrics: Sequence[str]) -> None:
        """Read what its run ended with, if it has; what is missing is an error."""
        self.look()
        result = read_result(self.job.folder)
        if result is None:
            return
        progress = read_progress(self.job.folder)
        found = dict(progress.metrics) if progress else {}
        if self.held_out:
            found |= self.held_out[max(self.held_out)]
        if result["value"] is not None:
            found[result["metric"]] = result["value"]
        missing = [name for name in metrics if name not in found]
        bad = [name for name in metrics if name in found and not math.isfinite(found[name])]
        if missing or bad:
            said = [f"{name} was never logged" for name in missing]
            said += [f"{name} is {found[name]}" for name in bad]
            self.error = self.error or said[0]
            return
        self.values = tuple(float(found[name]) for name in metrics)

    @property
    def has_ended(self) -> bool:
        return self.values is not None or bool(self.error)

    def has_reached(self, goal: int | None) -> bool:
        """Whether nothing is left for it to do until ``goal`` units; None: until its end."""
        return self.has_ended or (goal is not None and self.running is None and self.done >= goal)

    def curve(self, metric: str) -> dict[int, float]:
        """``metric`` by how many units of training it came after."""
        points = {unit: m[metric] for unit, m in self.held_out.items() if metric in m}
        return {unit: value for unit, value in sorted(points.items()) if math.isfinite(value)}

    def ended(self, outcome: Outcome, metrics: Sequence[str]) -> None:
        """Take how its process ended."""
        self.running = None
        if outcome.status == "failed":
            self.error = outcome.error or "it failed, and its log does not say why"
        self.finish(metrics)
        if outcome.status == "done" and not self.has_ended:
            self.error = "it ended without a result"
        stood = outcome.status == "paused" and self.done == self.tried_from
        self.stops = self.stops + 1 if stood else 0
        if self.stops == MOST_STOPS and not self.has_ended:
            self.error = f"it stopped {MOST_STOPS} times before its next {self.unit}"


@dataclass
class Trial:
    """A setting that is tried, with all of its seeds.

    Attributes:
        goal: after how many units its jobs are paused; None: they run to their end.
        same_as: the earlier trial that has the same setting; nothing runs twice.
        retried: whether it failed, and another stands for it.
    """

    number: int
    params: Mapping[str, Any]
    instances: list[Instance]
    goal: int | None = None
    same_as: "Trial | None" = None
    retried: bool = False
    state: str = "open"
    values: tuple[float, ...] | None = None
    reported: set[int] = field(default_factory=set)

    @property
    def is_open(self) -> bool:
        return self.state == "open"

    @property
    def error(self) -> str:
        """Of its first seed that failed."""
        return next((i.error for i in self.instances if i.error), "")

    @property
    def has_reached(self) -> bool:
        return all(instance.has_reached(self.goal) for instance in self.instances)

    def due(self) -> list[Instance]:
        """Those that can be started."""
        if not self.is_open or self.same_as:
            return []
        waiting = [i for i in self.instances if i.running is None]
        return [i for i in waiting if not i.has_reached(self.goal)]

    def mean(self) -> tuple[float, ...] | None:
        """Of each metric over the seeds, once all have ended."""
        values = [i.values for i in self.instances]
        if any(value is None for value in values):
            return None
        return tuple(statistics.fmean(column) for column in zip(*values, strict=True))

    def curves(self, metric: str) -> dict[int, dict[int, float]]:
        """By seed."""
        return {instance.seed: instance.curve(metric) for instance in self.instances}

    def mean_curve(self, metric: str) -> dict[int, float]:
        """Where all seeds were evaluated: their mean."""
        curves = list(self.curves(metric).values())
        shared = set.intersection(*(set(curve) for curve in curves))
        return {unit: statistics.fmean(c[unit] for c in curves) for unit in sorted(shared)}
