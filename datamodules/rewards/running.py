"""Where a reward function runs: a thread of its own, the main thread, or a process of its own.

All three give the results of ``invoking.perform``, or one ``Failure`` of the whole.
"""

import atexit
import contextvars
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from datamodules.guard import Failure, attempt, in_main
from datamodules.rewards.invoking import Work, event_loop, perform, resolved, total_s

PLACES = ("thread", "main", "process")
STARTUP_S = 60.0
"""More time for the first call of a process, which imports what it calls."""
Fn = Callable[..., Any]


class Runner(Protocol):
    """Makes the calls of a function somewhere."""

    def run(self, work: Work) -> Any:
        """Results and what was logged (``perform``); a ``Failure`` if there are none, or none in
        time."""


def runner_of(fn: Fn, place: str, path: str | None) -> Runner:
    """
    Args:
        place: one of ``PLACES``.
        path: ``module:name`` of the function, where it is known.

    Raises:
        ValueError: there is no such place, or it cannot run there.
    """
    if place not in PLACES:
        raise ValueError(f"reward.run_in={place!r}: use one of {', '.join(PLACES)}")
    if place == "process":
        return Process(path or path_of(fn))
    return Main(fn) if place == "main" else Threads(fn)


def path_of(fn: Fn) -> str:
    """Where another process finds ``fn``.

    Raises:
        ValueError: nowhere.
    """
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "")
    path = f"{module}:{name}"
    if module not in (None, "__main__") and attempt(partial(resolved, path)) is fn:
        return path
    raise ValueError(
        f"reward.run_in=process: {name or type(fn).__name__} of {module} cannot be imported by"
        " another process: put a function into a module of its own, and no lambda, method or"
        " functools.partial"
    )


class Threads:
    """Daemon threads of a function's own, kept from call to call, so that what it makes in the
    first (a connection, an event loop, thread-local state) is there in the next.

    They have the context variables of the thread that made this. One that hangs is left behind.
    """

    def __init__(self, fn: Fn) -> None:
        self.fn, self._context = fn, contextvars.copy_context()
        self._idle: list[_Thread] = []
        weakref.finalize(self, _dismiss, self._idle)

    def run(self, work: Work) -> Any:
        limit, thread = total_s(work), None
        while self._idle and thread is None:
            known = self._idle.pop()
            thread = known if known.is_alive() else None  # after a fork it is not
        thread = thread or _Thread(self._context.copy())
        result = thread.ask(partial(perform, self.fn, work), limit)
        if isinstance(result, Failure) and result.overdue:
            thread.dismiss()  # should it ever come back
        else:
            self._idle.append(thread)
        return result


def _dismiss(threads: "list[_Thread]") -> None:
    for thread in threads:
        thread.dismiss()


class _Thread(threading.Thread):
    def __init__(self, context: contextvars.Context) -> None:
        super().__init__(daemon=True, name="reward")
        self.calls: SimpleQueue = SimpleQueue()
        self.context = context
        self.start()

    def ask(self, call: Callable[[], Any], timeout_s: float | None) -> Any:
        reply: SimpleQueue = SimpleQueue()
        self.calls.put((call, reply))
        try:
            return reply.get(timeout=timeout_s)
        except Empty:
            return _overdue(timeout_s)

    def dismiss(self) -> None:
        self.calls.put(None)

    def run(self) -> None:
        self.context.run(self._serve)

    def _serve(self) -> None:
        while (asked := self.calls.get()) is not None:
            call, reply = asked
            reply.put(attempt(call))
            del call, reply, asked
        event_loop().close()


class Main:
    """The main thread, where signals can be set, while it waits for rewards.

    A time limit is a signal of our own (SIGVTALRM), so that those of the function (SIGALRM) stay
    free. It ends what runs in Python or sleeps; a long computation outside of Python goes on.
    """

    def __init__(self, fn: Fn) -> None:
        self.fn = fn

    def run(self, work: Work) -> Any:
        return in_main(partial(self._run, work))

    def _run(self, work: Work) -> Any:
        limit, call = total_s(work), partial(perform, self.fn, work)
        if limit is None:
            return attempt(call)
        main, late = threading.main_thread().ident, threading.Event()

        def ring() -> None:
            late.set()
            signal.pthread_kill(main, signal.SIGVTALRM)

        def stop(number: int, frame: Any) -> None:
            if late.is_set() and running[0]:
                running[0] = False
                raise _OutOfTime

        running, before = [True], signal.signal(signal.SIGVTALRM, stop)
        timer = threading.Timer(limit, ring)
        timer.daemon = True
        timer.start()
        try:
            result = attempt(call)
            running[0] = False
        except _OutOfTime:  # between the two lines above
            pass
        finally:
            running[0] = False
            timer.cancel()
            timer.join()
            signal.signal(signal.SIGVTALRM, before)
        return _overdue(limit) if late.is_set() else result


class _OutOfTime(BaseException):
    """Raised in the main thread where a call has had its time."""


class Process:
    """A process of its own, started when it is first needed, and ended when a call takes too long.

    Args:
        path: ``module:name`` of the function, which it imports.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._answered = False

    def run(self, work: Work) -> Any:
        with self._lock:
            process = self._started()
            limit, late = total_s(work), threading.Event()
            if limit is not None and not self._answered:
                limit += STARTUP_S

            def end() -> None:
                late.set()
                process.kill()

            timer = None if limit is None else threading.Timer(limit, end)
            if timer is not None:
                timer.daemon = True
                timer.start()
            try:
                process.stdin.write(pickle.dumps((random.getrandbits(63), work)))
                process.stdin.flush()
                results, logged = pickle.load(process.stdout)
            except (EOFError, OSError, pickle.UnpicklingError):
                process.kill()
                code = process.wait()
                gone = RuntimeError(f"its process ended by itself, with exit code {code}")
                return _overdue(limit) if late.is_set() else Failure(gone)
            except BaseException:  # an interrupt, or what cannot be pickled: no reply is read twice
                process.kill()
                raise
            finally:
                if timer is not None:
                    timer.cancel()
            self._answered = True
            return [r[1] if r[0] == "done" else _told(*r[1:]) for r in results], logged

    def _started(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            paths = os.pathsep.join(path for path in sys.path if path)
            environment = os.environ | {"PYTHONPATH": paths}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "datamodules.rewards.invoking"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # an interrupt is for this one to handle
            )
            atexit.register(self._process.kill)
            weakref.finalize(self, self._process.kill)
            self._answered = False
            self._process.stdin.write(pickle.dumps((sys.path, self.path)))
        return self._process


def _told(name: str, text: str, overdue: bool) -> Failure:
    """An error that was raised in another process."""
    return Failure(type(name, (RuntimeError,), {})(text), overdue)


def _overdue(limit: float | None) -> Failure:
    return Failure(TimeoutError(f"did not return within {limit:g} seconds"), overdue=True)
