"""Threads that work is queued on, and the futures that come back.

Every call returns a ``concurrent.futures.Future``: ``result(timeout)``, ``done()``, ``cancel()`` of
what has not started; an exception is raised by ``result()`` with the traceback of where it arose.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar


class Helpers:
    """Threads that call what is submitted; futures among its arguments are awaited first."""

    def __init__(self, count: int, name: str = "helper") -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._threads: set[threading.Thread] = set()

    @property
    def inside(self) -> bool:
        """Whether the caller is one of these threads."""
        return threading.current_thread() in self._threads

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """
        Raises:
            RuntimeError: after ``shutdown``.
        """
        return self._pool.submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        self._threads.add(threading.current_thread())
        return fn(*map(resolved, args), **{name: resolved(x) for name, x in kwargs.items()})

    def shutdown(self, *, wait: bool, cancel_pending: bool) -> None:
        """End after what is queued, or after what is running if ``cancel_pending``."""
        self._pool.shutdown(wait=wait and not self.inside, cancel_futures=cancel_pending)


class Lane(Helpers):
    """One thread: what is submitted runs in that order, one after another."""

    def __init__(self, name: str) -> None:
        super().__init__(1, name)

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """
        Raises:
            RuntimeError: after ``shutdown``; or from this very thread, which would wait for itself.
        """
        if self.inside:
            raise RuntimeError(
                "called from inside an operation (a loss function, perhaps) on the same model: its"
                " result would wait for the operation, and the operation for its result"
            )
        return super().submit(fn, *args, **kwargs)


def shut_down(pools: Sequence[Helpers], *, wait: bool, cancel_pending: bool) -> None:
    """End them all; a thread of one of them cannot wait for the others, which may wait for it."""
    wait = wait and not any(pool.inside for pool in pools)
    for pool in pools:
        pool.shutdown(wait=wait, cancel_pending=cancel_pending)


def resolved(x: Any) -> Any:
    """The result of a future, waited for; of a mapping, with its values resolved; else ``x``."""
    if isinstance(x, Future):
        return x.result()
    if isinstance(x, Mapping):
        return {name: resolved(value) for name, value in x.items()}
    return x


C = TypeVar("C", bound="Closing")


class Closing:
    """A ``with`` block that ends what was queued in it: drained, or after an error cancelled."""

    def shutdown(self, *, wait: bool = True, cancel_pending: bool = False) -> None:
        """End after all that is queued, or, if ``cancel_pending``, after what is running.

        Args:
            wait: return when that is done.
        """
        raise NotImplementedError

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.shutdown(cancel_pending=kind is not None)
