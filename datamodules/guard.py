"""Calls that may raise or hang, side by side in threads: one bad call costs itself alone."""

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any


@dataclass(frozen=True)
class Failure:
    """A call that raised, or did not come back in time."""

    error: BaseException
    overdue: bool = False
    """It did not come back; ``error`` says so."""

    def __str__(self) -> str:
        frames = traceback.extract_tb(self.error.__traceback__)
        where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
        return f"{type(self.error).__name__}: {self.error}{where}"


def attempt(call: Callable[[], Any]) -> Any:
    """The result of ``call``, or its ``Failure``, ``sys.exit`` included.

    An interrupt by the user, which reaches the main thread only, goes its way.
    """
    try:
        return call()
    except BaseException as error:
        main = threading.current_thread() is threading.main_thread()
        if main and isinstance(error, KeyboardInterrupt):
            raise
        return Failure(error)


def guarded(calls: Sequence[Callable[[], Any]], timeout_s: float | None) -> list[Any]:
    """The result of each call, or its ``Failure``: in threads where there is a time limit."""
    if timeout_s is not None:
        return run_all(calls, timeout_s=timeout_s)
    return [attempt(call) for call in calls]


def run_all(
    calls: Sequence[Callable[[], Any]],
    *,
    timeout_s: float | None = None,
    workers: int | None = None,
) -> list[Any]:
    """The result of each call, or its ``Failure``, in the order of ``calls``.

    The threads are daemons: one that hangs is left behind and replaced, and never keeps the
    interpreter alive.

    Args:
        timeout_s: seconds that one call may take; None waits for ever.
        workers: calls at once; default: one a core, and two at least.
    """
    waiting: SimpleQueue = SimpleQueue()
    for item in enumerate(calls):
        waiting.put(item)
    results: list[Any] = [None] * len(calls)
    finished: SimpleQueue = SimpleQueue()
    count = min(workers or max(os.cpu_count() or 1, 2), len(calls))
    threads = [_Worker(waiting, finished) for _ in range(count)]
    open_calls = set(range(len(calls)))
    while open_calls:
        try:
            index, result = finished.get(timeout=None if timeout_s is None else 0.05)
        except Empty:
            pass
        else:
            if index in open_calls:  # else it came back after it had been given up
                results[index] = result
                open_calls.discard(index)
        if timeout_s is None:
            continue
        now = time.monotonic()
        for position, worker in enumerate(threads):
            busy = worker.abandon_if_busy_since(now - timeout_s)
            if busy is not None:
                threads[position] = _Worker(waiting, finished)
            if busy in open_calls:
                error = TimeoutError(f"did not return within {timeout_s:g} seconds")
                results[busy] = Failure(error, overdue=True)
                open_calls.discard(busy)
    return results


class _Worker(threading.Thread):
    """Takes calls until none is left, or until it was given up."""

    def __init__(self, waiting: SimpleQueue, finished: SimpleQueue) -> None:
        super().__init__(daemon=True, name="guarded call")
        self.waiting, self.finished = waiting, finished
        self.busy: tuple[int, float] | None = None
        """The call it is in, and since when."""
        self.abandoned = False
        self.lock = threading.Lock()
        self.start()

    def abandon_if_busy_since(self, moment: float) -> int | None:
        """Give the thread up if it began its call before ``moment``; returns which one."""
        with self.lock:
            if self.abandoned or self.busy is None or self.busy[1] >= moment:
                return None
            self.abandoned = True
            return self.busy[0]

    def run(self) -> None:
        while True:
            with self.lock:  # whoever is given up takes no further call
                if self.abandoned:
                    return
                try:
                    index, call = self.waiting.get_nowait()
                except Empty:
                    self.busy = None
                    return
                self.busy = (index, time.monotonic())
            self.finished.put((index, attempt(call)))


def in_main(call: Callable[[], Any]) -> Any:
    """The result of ``call`` made in the main thread, or its ``Failure``.

    Another thread has it made there while the main one is within ``serving_main``.
    """
    if threading.current_thread() is threading.main_thread():
        return attempt(call)
    reply: SimpleQueue = SimpleQueue()
    with _asking:
        if _calls is None:
            return Failure(
                RuntimeError("the main thread is not at hand: it waits for something else")
            )
        _calls.put((call, reply))
    return reply.get()


_asking = threading.Lock()
_calls: SimpleQueue | None = None
"""What the main thread is asked for; None where it does not look."""


@contextmanager
def serving_main() -> Iterator[Callable[[Future], None]]:
    """Gives a function that waits for a future in the main thread, and makes there what is asked
    for by ``in_main`` meanwhile; elsewhere it only waits."""
    global _calls
    if threading.current_thread() is not threading.main_thread() or _calls is not None:
        yield lambda future: None
        return
    calls = _calls = SimpleQueue()

    def wait(future: Future) -> None:
        future.add_done_callback(lambda _: calls.put(None))
        while (asked := calls.get()) is not None:
            call, reply = asked
            try:
                result = attempt(call)
            except BaseException as error:  # an interrupt by the user
                reply.put(Failure(error))
                raise
            reply.put(result)

    try:
        yield wait
    finally:
        with _asking:
            _calls = None
        while not calls.empty():  # whoever waits still is told
            if (asked := calls.get()) is not None:
                asked[1].put(Failure(RuntimeError("the main thread went on without it")))
