"""Searches in the test's own process: jobs are a function, time passes with each look at them."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console

from rlmodules.sweeping.jobs import PROGRESS, Job, Outcome, read_progress, write_result
from rlmodules.sweeping.search.begin import make_plan, search

Curve = Callable[[dict[str, Any], int], dict[str, float]]
"""Metrics of a run with these options after so many units."""


def options_of(job: Job) -> dict[str, Any]:
    overrides = OverridesParser.create().parse_overrides(list(job.overrides))
    return {override.key_or_group: override.value() for override in overrides}


@dataclass
class PlayedJob:
    """A run that does one unit each time that somebody looks."""

    job: Job
    curve: Curve
    total: int
    pause_at: int | None
    metric: str
    spent: list[tuple[str, int]]
    asked: bool = False
    outcome: Outcome | None = None

    def poll(self) -> Outcome | None:
        if self.outcome is None:
            self.outcome = self._work()
        return self.outcome

    def _work(self) -> Outcome | None:
        folder, options = self.job.folder, options_of(self.job)
        known = read_progress(folder)
        done = known.done if known else 0
        if self.asked or (self.pause_at is not None and done >= self.pause_at):
            return Outcome("paused")
        try:
            held_out = list(known.held_out) if known else [(0, self.curve(options, 0))]
            metrics = self.curve(options, done + 1)
        except RuntimeError as error:
            return Outcome("failed", error=str(error))
        done += 1
        self.spent.append((folder.name, done))
        every = options.get("algo.eval_every", 1)
        if done % every == 0 or done == self.total:
            held_out.append((done, metrics))
        folder.mkdir(parents=True, exist_ok=True)
        progress = {
            "unit": "iteration",
            "done": done,
            "total": self.total,
            "metrics": metrics,
            "held_out": held_out,
            "seconds": float(done),
        }
        (folder / PROGRESS).write_text(json.dumps(progress))
        if done < self.total:
            return None
        write_result(folder, self.metric, metrics.get(self.metric))
        return Outcome("done", metrics.get(self.metric))

    def pause(self) -> None:
        self.asked = True

    def kill(self) -> None:
        self.outcome = Outcome("failed", error="killed")


@dataclass
class Played:
    """A ``Runner`` of played jobs; it counts every unit that was worked."""

    curve: Curve
    total: int = 4
    slots: int = 2
    metric: str = "val/reward"
    dies_after: int | None = None
    """Jobs that it starts before the sweep is killed."""
    spent: list[tuple[str, int]] = field(default_factory=list)
    started: list[tuple[str, int | None]] = field(default_factory=list)

    def start(self, job: Job, *, pause_at: int | None = None) -> PlayedJob:
        if self.dies_after is not None and len(self.started) >= self.dies_after:
            raise Killed
        self.started.append((job.folder.name, pause_at))
        return PlayedJob(job, self.curve, self.total, pause_at, self.metric, self.spent)


class Killed(BaseException):
    """Stands for -9: nothing after it is done."""


SWEEPER: dict[str, Any] = {
    "params": {"algo.learning_rate": "tag(log,interval(1e-6,1e-2))"},
    "seeds": [0],
    "n_trials": 20,
    "sampler": {"_target_": "optuna.samplers.TPESampler", "seed": 0, "n_startup_trials": 6},
}


def plan(*arguments: str, algo: Any = None, **sweeper: Any):
    """What ``make_plan`` makes of a small config."""
    config = {
        "hydra": {"sweeper": SWEEPER | sweeper, "runtime": {"choices": {"algo": "ppo"}}},
        "optimized_metric": "val/reward",
        "module": "rlmodules.PPO",
        "algo": {"num_iterations": 4, "eval_every": 1} | (algo or {}),
    }
    return make_plan(OmegaConf.create(config), list(arguments))


def run(
    folder: Path,
    runner: Played,
    *arguments: str,
    plan_=None,
    retry_failed: bool = False,
    **sweeper: Any,
):
    """The result of a whole search, and what it printed."""
    console = Console(file=io.StringIO(), width=200)
    made = plan_ or plan(*arguments, **sweeper)
    try:
        found = search(
            made, runner, folder, console=console, seconds=0.0, retry_failed=retry_failed
        )
    except ValueError as error:
        error.printed = console.file.getvalue()  # type: ignore[attr-defined]
        raise
    return found, console.file.getvalue()
