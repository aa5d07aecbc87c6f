"""What is seen of a sweep while it runs: its jobs, read from their folders."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlmodules.sweeping.jobs import (
    LOG,
    Job,
    Progress,
    read_failure,
    read_progress,
    read_result,
)

SHOWN = {"reward": "rollout/reward", "loss": "train/loss"}
"""What is shown of a running job besides the metric that is optimized: the first that it has."""
EVERY = 60.0
"""Seconds between two lines on what is running, where there is no terminal."""
MOST = 20
"""Running jobs that are listed at most."""


@dataclass
class Seen:
    """A job as it was last looked at.

    Attributes:
        state: ``waiting``, ``running``, ``done``, ``failed``.
        at_first: the part of it that was done before this sweep began.
    """

    job: Job
    state: str = "waiting"
    progress: Progress | None = None
    value: float | None = None
    error: str = ""
    at_first: float = 0.0
    log: int = 0

    @property
    def part(self) -> float:
        """How much of it is done."""
        if self.state == "done":
            return 1.0
        return self.progress.done / max(self.progress.total, 1) if self.progress else 0.0

    def look(self) -> bool:
        """Read the folder again; whether the state is another one than before."""
        before, folder = self.state, self.job.folder
        if before in ("done", "failed"):
            return False
        if (result := read_result(folder)) is not None:
            self.state, self.value = "done", result["value"]
        elif (failure := read_failure(folder)) is not None:
            self.state, self.error = "failed", failure["error"]
        elif _size(folder / LOG) > self.log:
            self.state, self.progress = "running", read_progress(folder)
        return self.state != before


class Board:
    """Shows a sweep: a live table on a terminal, plain lines elsewhere.

    Args:
        jobs: all of the sweep.
        metric: that is optimized.
        console: where to.
    """

    def __init__(self, jobs: Sequence[Job], metric: str, console: Console | None = None) -> None:
        self.metric, self.console = metric, console or Console()
        self.seen = {job.folder: Seen(job) for job in jobs}
        self.note = ""
        self._live: Live | None = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> "Board":
        for seen in self.seen.values():
            seen.log = _size(seen.job.folder / LOG)
            seen.progress = read_progress(seen.job.folder)
            seen.look()
            seen.at_first = seen.part
        if kept := self.count("done"):
            self.say(f"{kept} of {len(self.seen)} jobs are done already.")
        self._began = self._told = time.monotonic()
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.table, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.look()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str, style: str = "") -> None:
        """Print a line, above the table where there is one."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def count(self, state: str) -> int:
        """How many jobs are so."""
        return sum(seen.state == state for seen in self.seen.values())

    def look(self) -> None:
        """Look at all jobs; say what is new."""
        for seen in self.seen.values():
            if seen.look() and (seen.state == "failed" or self._live is None):
                self.say(*self.news(seen))
        if self._live is None and time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            self.say("; ".join([self.summary(), *map(self.line, self.running())]))

    def news(self, seen: Seen) -> tuple[str, str]:
        """What is said of a job that has another state now; and its colour."""
        if seen.state == "failed":
            said = f"{name_of(seen.job)} failed: {seen.error} ({seen.job.folder / LOG})"
            return said, "red"
        if seen.state == "done":
            value = "" if seen.value is None else f": {self.metric} {seen.value:.4g}"
            return f"{name_of(seen.job)} is done{value}  ({self.summary()})", "green"
        return f"{name_of(seen.job)} has begun", ""

    def running(self) -> list[Seen]:
        return [seen for seen in self.seen.values() if seen.state == "running"]

    def line(self, seen: Seen) -> str:
        """A running job: ``lr=3e-5,seed=1: iteration 3/10, reward 0.61``."""
        return f"{name_of(seen.job)}: {', '.join(filter(None, self.cells(seen))) or 'beginning'}"

    def cells(self, seen: Seen) -> list[str]:
        """Of a running job: how far it is, its reward, and the metric that is optimized."""
        progress = seen.progress
        if progress is None:
            return ["beginning", "", ""]
        shown = {label: name for label, name in SHOWN.items() if name in progress.metrics}
        first = next(iter(shown.items()), None)
        values = [first, (self.metric, self.metric)]
        return [
            f"{progress.unit} {progress.done}/{progress.total}",
            *(
                f"{label} {progress.metrics[name]:.4g}"
                if pair and (name := pair[1]) in progress.metrics and (label := pair[0])
                else ""
                for pair in values
            ),
        ]

    def summary(self) -> str:
        """``2 done, 1 running, 1 waiting; about 3 min left``"""
        states = ("done", "running", "failed", "waiting")
        counts = [f"{self.count(state)} {state}" for state in states if self.count(state)]
        left = self.seconds_left()
        return ", ".join(counts) + (f"; about {duration(left)} left" if left else "")

    def seconds_left(self) -> float | None:
        """At the pace at which parts of jobs were done in this sweep; None where there is none."""
        seen = [one for one in self.seen.values() if one.state != "failed"]
        done = sum(one.part - one.at_first for one in seen)
        open_ = sum(1 - one.part for one in seen)
        passed = time.monotonic() - self._began
        return passed / done * open_ if done > 0 and open_ > 0 else None

    def table(self) -> Group:
        """What a terminal shows, as of the last look."""
        table = Table(box=None, pad_edge=False, show_header=False)
        running = self.running()
        for seen in running[:MOST]:
            table.add_row(Text(name_of(seen.job), style="bold"), *map(Text, self.cells(seen)))
        if len(running) > MOST:
            table.add_row(f"and {len(running) - MOST} more")
        return Group(table, Text(self.summary()), *([Text(self.note)] if self.note else []))


def name_of(job: Job) -> str:
    """A job is called as its folder."""
    return job.folder.name


def duration(seconds: float) -> str:
    """``40 s``, ``3 min``, ``2.5 h``"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
