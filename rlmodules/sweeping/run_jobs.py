"""Runs jobs on a runner's slots, until all have ended or somebody wants to stop."""

import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import Any

from rlmodules.resuming.folder import ForeignFolderError
from rlmodules.sweeping.board import Board
from rlmodules.sweeping.jobs import Job, Outcome, Runner, Running, write_failure

SECONDS = 0.2
"""Between two looks at the jobs."""


class Interrupts:
    """Counts Ctrl-C and SIGTERM while it is entered, instead of ending what is going on."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def run_jobs(
    jobs: Sequence[Job], runner: Runner, board: Board, interrupts: Interrupts
) -> list[tuple[Job, Outcome]]:
    """Run ``jobs``; those that were not begun when somebody wanted to stop are not in the answer.

    The first Ctrl-C pauses all that run, each saves; the second ends them.
    """
    waiting, told = deque(jobs), 0
    running: list[tuple[Job, Running]] = []
    ended: list[tuple[Job, Outcome]] = []
    try:
        while running or (waiting and not interrupts.count):
            if interrupts.count > told:
                told = interrupts.count
                _stop([one for _, one in running], board, at_once=told > 1)
            while waiting and len(running) < runner.slots and not interrupts.count:
                job = waiting.popleft()
                try:
                    running.append((job, runner.start(job)))
                except ForeignFolderError as error:  # somebody else has begun it
                    write_failure(job.folder, str(error))
            outcomes = [(job, one, one.poll()) for job, one in running]
            ended += [(job, outcome) for job, _, outcome in outcomes if outcome is not None]
            running = [(job, one) for job, one, outcome in outcomes if outcome is None]
            board.look()
            time.sleep(SECONDS)
    except BaseException:  # nothing is to run on of which nobody knows
        for _, one in running:
            one.pause()
        raise
    return ended


def _stop(running: Sequence[Running], board: Board, *, at_once: bool) -> None:
    for one in running:
        one.kill() if at_once else one.pause()
    if running and not at_once:
        board.note = "Pausing: each job saves after its step; Ctrl-C again ends them at once."
        board.say(board.note)
