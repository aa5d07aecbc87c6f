"""What is seen of a search while it runs."""

import time
from collections.abc import Sequence

from rich.console import Console

from rlmodules.sweeping.board import Board, Seen, duration
from rlmodules.sweeping.jobs import Job, read_progress
from rlmodules.sweeping.search.trials import Trial


class TrialBoard(Board):
    """Shows the jobs that run, and how many trials there were.

    Args:
        trials: those that there are, as they come.
        n_trials: that there will be.
        metric: that is searched for.
        console: where to.
    """

    def __init__(
        self, trials: Sequence[Trial], n_trials: int, metric: str, console: Console
    ) -> None:
        super().__init__([], metric, console)
        self.trials, self.n_trials = trials, n_trials
        self._ended_before = 0

    def __enter__(self) -> "TrialBoard":
        super().__enter__()
        return self

    def restored(self) -> None:
        """The trials of an earlier time are there; the pace is that of this one."""
        self._ended_before = self._ended()

    def begin(self, job: Job) -> None:
        """A job is started, or gone on with."""
        seen = self.seen.setdefault(job.folder, Seen(job))
        seen.progress = read_progress(job.folder)

    def end(self, trial: Trial) -> None:
        """A trial has ended, and with it its jobs."""
        for instance in trial.instances:
            self.seen.pop(instance.job.folder, None)

    def summary(self) -> str:
        """``7 of 20 trials have ended, 2 jobs are running; about 12 min left``"""
        ended, running = self._ended(), self.count("running")
        said = f"{ended} of {self.n_trials} trials have ended, {running} jobs are running"
        left = self.seconds_left()
        return f"{said}; about {duration(left)} left" if left else said

    def seconds_left(self) -> float | None:
        """At the pace at which trials ended."""
        here = self._ended() - self._ended_before
        passed = time.monotonic() - self._began
        return passed / here * (self.n_trials - self._ended()) if here else None

    def _ended(self) -> int:
        return sum(not trial.is_open and not trial.retried for trial in self.trials)
