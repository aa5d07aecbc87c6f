"""Rewards that want the main thread: told by what they raise, or by signals they fail to set."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TELLING = (
    "main thread",  # signal.signal, signal.set_wakeup_fd, tkinter, matplotlib
    "threaded environment",  # math-verify
    "no current event loop",
    "created in a thread can only be used in that same thread",  # SQLite
    "_thread._local' object has no attribute",
    "thread.local' object has no attribute",
    "switch to a different thread",  # greenlets
    "different thread",
    "not the thread",
    "LookupError: <ContextVar",
)
"""What libraries say where they are called in another thread than they were made in."""
REMEDY = "set reward.run_in=main, which calls it in the main thread"


class HiddenSignalError(RuntimeError):
    """A function could not set a signal, and went on without."""


def wants_main(error: BaseException | None) -> bool:
    """Whether ``error``, or what it came of, is of a call in another thread than the main one."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said = f"{type(error).__name__}: {error}"
        if any(part in said for part in TELLING):
            return True
        error = error.__cause__ or error.__context__
    return False


_lock = threading.Lock()
_watchers = 0
_failed: list[threading.Thread] = []
"""Threads that could not set a signal, while somebody watches."""
_set_signal = signal.signal
OURS = ("reward", "guarded call")
"""Names of threads that rewards are called in; others are a reward's own."""


def _noting(*args: Any) -> Any:
    try:
        return _set_signal(*args)
    except ValueError:
        _failed.append(threading.current_thread())
        raise


@contextmanager
def noting_signals() -> Iterator[None]:
    """Notices that signals could not be set within, off the main thread, though nothing was raised.

    math-verify raises then, and who catches what it raises takes each answer for wrong.

    Raises:
        HiddenSignalError: it was so.
    """
    global _watchers
    with _lock:
        _watchers += 1
        signal.signal = _noting
        before = len(_failed)
    try:
        yield
        own = threading.current_thread()
        hidden = any(t is own or t.name not in OURS for t in _failed[before:])
    finally:
        with _lock:
            _watchers -= 1
            if not _watchers:
                signal.signal = _set_signal
                _failed.clear()
    if hidden:
        raise HiddenSignalError(
            "could not set a signal (as time limits of math-verify do), which only the main thread"
            " can, and caught the error, so that its rewards mean nothing"
        )
