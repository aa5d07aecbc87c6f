"""A sweep's jobs on launchers that are not ours: joblib, submitit, Ray; and ``basic``."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from rlmodules.resuming.folder import ForeignFolderError, held
from rlmodules.sweeping.board import Board
from rlmodules.sweeping.commands import HERE
from rlmodules.sweeping.jobs import (
    Job,
    ask_to_pause,
    read_failure,
    read_result,
    write_failure,
    write_job,
)
from rlmodules.sweeping.processes import arguments, begin_anew, quoted

SECONDS = 1.0
"""Between two looks at the jobs."""
PATIENCE = 600.0
"""Seconds that jobs are given to save after Ctrl-C."""


def launch(jobs: Sequence[Job], launcher: Launcher, board: Board, *, here: bool) -> bool:
    """Have ``launcher`` run ``jobs``; False if Ctrl-C stopped them.

    Args:
        here: they run in this process (``hydra/launcher=basic``), so that what is otherwise done
            where a job starts is done now.
    """
    batch = []
    for job in jobs:
        told = list(job.overrides)
        if here:
            begin_anew(job)
            told = [o for o in arguments(job) if not o.startswith("hydra.")]
            write_job(job, told)
        place = {"dir": job.folder.parent, "subdir": job.folder.name}
        batch.append([*told, *(f"hydra.sweep.{key}={quoted(v)}" for key, v in place.items())])
    importable()
    try:
        with watched(board):
            returned = launcher.launch(batch, initial_job_idx=0)
    except KeyboardInterrupt:
        _pause(jobs, board)
        return False
    for job, ended in zip(jobs, returned, strict=True):
        _note(job, ended)
    return True


def importable() -> None:
    """Let the processes of launchers import this project."""
    path = os.environ.get("PYTHONPATH", "")
    if (HERE / "train.py").is_file() and str(HERE) not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), path)))


@contextmanager
def watched(board: Board) -> Iterator[None]:
    """Keep the board going while the block waits."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(SECONDS):
            board.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _note(job: Job, ended: JobReturn) -> None:
    """Note a failure that the job itself could not."""
    if ended.status != JobStatus.FAILED:
        return
    if read_result(job.folder) is None and read_failure(job.folder) is None:
        error: Any = ended._return_value
        said = str(error).strip().partition("\n")[0]
        write_failure(job.folder, f"{type(error).__name__}: {said}")


def _pause(jobs: Sequence[Job], board: Board) -> None:
    """Have all that run save, and wait for them as long as it may take; a second Ctrl-C goes."""
    board.say("Pausing: each job saves after its step; Ctrl-C again waits for none.")
    until = time.monotonic() + PATIENCE
    going = [job for job in jobs if is_going_on(job.folder)]
    for job in going:
        ask_to_pause(job.folder)
    with suppress(KeyboardInterrupt):
        while time.monotonic() < until and any(is_going_on(job.folder) for job in going):
            time.sleep(SECONDS)


def is_going_on(folder: Path) -> bool:
    """Whether a run is in ``folder``. (Ask only while nothing is started there: the answer holds
    the folder for a moment.)"""
    if not folder.is_dir():
        return False
    try:
        with held(folder):
            return False
    except ForeignFolderError:
        return True
