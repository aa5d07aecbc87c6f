"""A job of a sweep: one run with a folder of its own, told of and asked through that folder.

Nothing else connects a sweep and its jobs, so it does not matter who started a job, on which
machine it runs, or whether the sweep that asks is the one that began it.

    job.json       by the sweep, before it starts: the job's overrides
    job.log        all that it prints
    progress.json  by the run, after each iteration and each evaluation: how far it is
    pause          by the sweep, or by anyone: the run is to save and stop, at its next step, or
                   where it holds a number, once so many units are done; the run removes it then
    result.json    by the run, as its last: the optimized metric
    failure.json   by what started it: how it failed; removed when it is started again
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datamodules.atomic import write_text
from rlmodules.reports.files import FAILURE as FAILURE
from rlmodules.reports.files import JOB as JOB
from rlmodules.reports.files import LOG as LOG
from rlmodules.reports.files import PAUSE as PAUSE
from rlmodules.reports.files import PROGRESS as PROGRESS
from rlmodules.reports.files import RESULT as RESULT
from rlmodules.reports.files import Progress as Progress
from rlmodules.reports.files import read_progress as read_progress
from rlmodules.reports.files import read_result as read_result

LAST = "checkpoints/last.ckpt"
"""What a job goes on from, in its folder."""
PAUSED = 75
"""Exit status of a run that ``pause`` stopped (sysexits' "come again")."""


@dataclass(frozen=True)
class Job:
    """``python train.py OVERRIDES`` in ``folder``.

    Attributes:
        overrides: all that it is told, ``algo.learning_rate=3e-05``, those that were swept too.
        swept: those of them that differ between the jobs of the sweep, by option.
        number: which of the sweep's jobs it is (``hydra.job.num``).
    """

    overrides: tuple[str, ...]
    folder: Path
    swept: Mapping[str, Any] = field(default_factory=dict)
    number: int | None = None


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


def write_progress(folder: Path, progress: Progress) -> None:
    """Say in ``folder`` how far its run is."""
    write_text(folder / PROGRESS, json.dumps(asdict(progress), indent=1))


def ask_to_pause(folder: Path, at: int | None = None) -> None:
    """Have the run of ``folder`` save and stop: once ``at`` units are done, or at its next step."""
    write_text(folder / PAUSE, "" if at is None else str(at))


def pause_at(folder: Path) -> int | None:
    """After how many units the run of ``folder`` is to pause: 0 at its next step, None not at all.

    Raises:
        ValueError: the file holds something else than a number.
    """
    try:
        said = (folder / PAUSE).read_text().strip()
    except FileNotFoundError:
        return None
    if said and not said.isdecimal():
        raise ValueError(
            f"{folder / PAUSE} holds {said!r}: leave it empty to pause the run at its next step, or"
            " write after how many iterations (optimizer steps, without episodes)"
        )
    return int(said or 0)


def forget_pause(folder: Path) -> None:
    """Nobody asks the run of ``folder`` to pause any more."""
    (folder / PAUSE).unlink(missing_ok=True)


def write_result(folder: Path, metric: str, value: float | None, **more: Any) -> None:
    """Say in ``folder`` that its run is complete."""
    write_text(folder / RESULT, json.dumps({"metric": metric, "value": value} | more, indent=1))


def reported(folder: Path, metric: str) -> float | None:
    """The last value of ``metric`` in the report of a run that is complete; None without one."""
    try:
        report = json.loads((folder / "report.json").read_text())
    except FileNotFoundError:
        return None
    value = {**report["history"][-1], **report["after"]}.get(metric)
    return None if value is None else float(value)


def write_failure(folder: Path, error: str, **more: Any) -> None:
    """Say in ``folder`` that its run has failed, and how."""
    write_text(folder / FAILURE, json.dumps({"error": error} | more, indent=1))


def read_failure(folder: Path) -> dict[str, Any] | None:
    """What ``write_failure`` wrote: ``error`` and more; None if it has not failed."""
    try:
        return dict(json.loads((folder / FAILURE).read_text()))
    except FileNotFoundError:
        return None


def write_job(job: Job, argv: Sequence[str]) -> None:
    """Say in the job's folder what it is, before it starts."""
    said = {"overrides": list(job.overrides), "swept": dict(job.swept), "argv": list(argv)}
    write_text(job.folder / JOB, json.dumps(said, indent=1))


def read_job(folder: Path) -> list[str] | None:
    """The overrides of the job that was started in ``folder``; None if none was."""
    try:
        return list(json.loads((folder / JOB).read_text())["overrides"])
    except FileNotFoundError:
        return None
