"""Jobs as processes: each its own program, session, log, threads and devices."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rlmodules.resuming.folder import held
from rlmodules.sweeping.errors import last_error, meaning
from rlmodules.sweeping.jobs import (
    FAILURE,
    JOB,
    LAST,
    LOG,
    PAUSED,
    Job,
    Outcome,
    ask_to_pause,
    forget_pause,
    read_job,
    read_result,
    write_failure,
    write_job,
)
from rlmodules.sweeping.parent import PARENT

STOPPED = (PAUSED, 128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of runs that saved."""
OF_ONE_RUN = ("HYDRA_FULL_ERROR", "RLMODULES_FOLDERS", "RLMODULES_LAST")
"""Environment variables that are about the process that starts a job."""


def quoted(value: object) -> str:
    """``value`` as Hydra reads it back whole, whatever is in it."""
    text = str(value).replace('"', '\\"')
    # A backslash is one by itself, and stands for the next where that is a quote.
    return '"' + re.sub(r'(\\+)(?=\\"|$)', r"\1\1", text) + '"'


def arguments(job: Job) -> list[str]:
    """What ``train.py`` is told for ``job``: to go on, where the job has saved before."""
    last = job.folder / LAST
    given = [o for o in job.overrides if not (last.is_file() and o.startswith("ckpt_path="))]
    goes_on = [f"ckpt_path={quoted(last)}"] if last.is_file() else []
    number = job.number
    numbered = [] if number is None else [f"hydra.job.num={number}", f"hydra.job.id={number}"]
    return [*given, *goes_on, f"hydra.run.dir={quoted(job.folder)}", *numbered]


def begin_anew(job: Job) -> None:
    """Make the job's folder; if this job was in it, and did not come to save, remove its traces.

    Raises:
        ForeignFolderError: a run is going on in it.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    if read_job(job.folder) != list(job.overrides) or (job.folder / LAST).is_file():
        return
    with held(job.folder):
        for path in job.folder.iterdir():
            if path.name not in (JOB, LOG):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass
class Process:
    """A job that runs as a process (``jobs.Running``)."""

    job: Job
    process: subprocess.Popen[bytes]
    log_from: int
    """Where in the log this start of the job begins."""
    killed: bool = False
    outcome: Outcome | None = None

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""
        if self.outcome is None and (status := self.process.poll()) is not None:
            self._signal(signal.SIGKILL)  # what it started and left behind
            self.outcome = self._ended(status)
            if self.outcome.status == "failed" and not self.killed:
                write_failure(self.job.folder, self.outcome.error, exit=status)
        return self.outcome

    def pause(self) -> None:
        """Ask it to save and stop at its next step."""
        ask_to_pause(self.job.folder)

    def kill(self) -> None:
        """End it and all that it started."""
        self.killed = True
        self._signal(signal.SIGKILL)

    def _ended(self, status: int) -> Outcome:
        if (result := read_result(self.job.folder)) is not None:
            return Outcome("done", result["value"])
        if status in STOPPED:
            return Outcome("paused")
        if status == -signal.SIGKILL:  # it had no time to say anything
            return Outcome("failed", error=meaning(status))
        said = last_error(self.job.folder / LOG, self.log_from)
        return Outcome("failed", error=": ".join(filter(None, (meaning(status), said))))

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Processes:
    """Starts each job as ``python train.py OVERRIDES`` on one of its slots (``jobs.Runner``).

    Args:
        program: ``train.py``, with options of Hydra's own (``--config-dir``) behind it.
        environments: of each slot, what its processes find besides: devices, threads.
        folder: in which a job works, where one typed the command.
    """

    def __init__(
        self,
        program: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        folder: Path | None = None,
    ) -> None:
        self.program, self.environments = list(program), list(environments)
        self.folder = folder or Path.cwd()
        self._on: dict[int, Process] = {}

    @property
    def slots(self) -> int:
        """How many run at the same time."""
        return len(self.environments)

    def start(self, job: Job, *, pause_at: int | None = None, follows: bool = False) -> Process:
        """Start ``job``, or continue it from its folder's ``last.ckpt``.

        Call it from a thread that lives as long as the job may: with that thread's end, the job
        saves and stops.

        Args:
            pause_at: after how many units it is to save and stop; None: at its end.
            follows: another process of the same job has begun it, on a cluster that starts several.
        """
        free = [n for n in range(self.slots) if n not in self._on or self._on[n].poll()]
        assert free, "all slots are taken"
        slot = free[0]
        if not follows:
            begin_anew(job)
        told = [*self.program, *arguments(job)]
        if not follows:
            (job.folder / FAILURE).unlink(missing_ok=True)
            forget_pause(job.folder) if pause_at is None else ask_to_pause(job.folder, pause_at)
            write_job(job, told)
        with (job.folder / LOG).open("ab") as log:
            log.write(f"$ {shlex.join(told)}    # {time.strftime('%F %T')}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, *told],
                cwd=self.folder,
                env=self._environment(slot),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is not for it, and all it starts can be ended
            )
            self._on[slot] = Process(job, process, log.tell())
        return self._on[slot]

    def _environment(self, slot: int) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name not in OF_ONE_RUN}
        told = {PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        return own | told | dict(self.environments[slot])
