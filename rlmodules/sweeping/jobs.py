"""A job of a sweep: one run with a folder of its own, told of and asked through that folder.

Nothing else connects a sweep and its jobs, so it does not matter who started a job, on which
machine it runs, or whether the sweep that asks is the one that began it.

    job.json       by the sweep, before it starts: the job's overrides
    job.log        all that it prints
    progress.json  by the run, after each iteration and each evaluation: how far it is
    pause          by the sweep: the run is to save and stop at its next step
    result.json    by the run, as its last: the optimized metric
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datamodules.atomic import write_text
from rlmodules.reports.files import JOB as JOB
from rlmodules.reports.files import LOG as LOG
from rlmodules.reports.files import PAUSE as PAUSE
from rlmodules.reports.files import PROGRESS as PROGRESS
from rlmodules.reports.files import RESULT as RESULT
from rlmodules.reports.files import Progress as Progress
from rlmodules.reports.files import read_progress as read_progress
from rlmodules.reports.files import read_result as read_result


@dataclass(frozen=True)
class Job:
    """``python train.py OVERRIDES`` in ``folder``.

    Attributes:
        overrides: all that it is told, ``algo.learning_rate=3e-05``, those that were swept too.
        swept: those of them that differ between the jobs of the sweep, by option.
    """

    overrides: tuple[str, ...]
    folder: Path
    swept: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: ``done`` (there is a result), ``paused`` (it saved, and can be continued) or
            ``failed``.
        value: the optimized metric; None where the run has none.
        error: the last line of what went wrong.
    """

    status: str
    value: float | None = None
    error: str = ""


class Running(Protocol):
    """A job that was started."""

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""

    def pause(self) -> None:
        """Ask it to save and stop; ``poll`` tells when it has."""

    def kill(self) -> None:
        """End it at once."""


class Runner(Protocol):
    """What starts jobs: processes here, a launcher of Hydra's, a function in a test."""

    slots: int
    """How many run at the same time."""

    def start(self, job: Job, *, pause_at: int | None = None) -> Running:
        """Start ``job``, or continue it from its folder's ``last.ckpt``.

        Args:
            pause_at: after how many units it is to save and stop; None: at its end.
        """


def write_result(folder: Path, metric: str, value: float | None, **more: Any) -> None:
    """Say in ``folder`` that its run is complete."""
    write_text(folder / RESULT, json.dumps({"metric": metric, "value": value} | more, indent=1))


def write_job(job: Job, argv: Sequence[str]) -> None:
    """Say in the job's folder what it is, before it starts."""
    said = {"overrides": list(job.overrides), "swept": dict(job.swept), "argv": list(argv)}
    write_text(job.folder / JOB, json.dumps(said, indent=1))
