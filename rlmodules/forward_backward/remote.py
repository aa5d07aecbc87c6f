"""A client whose model lives elsewhere: an ``AsyncTrainingClient`` as a Ray actor.

The loop stays where it is written; calls go out in the order in which they were made, results come
back as futures. Callbacks given to ``submit`` run here, not there.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from rlmodules.forward_backward.lanes import Helpers, Lane, resolved
from rlmodules.forward_backward.operations import TrainingClient
from rlmodules.forward_backward.tokens import snapshot


class Service:
    """The actor: runs an ``AsyncTrainingClient`` where the device is.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.client = make()
        self.futures: dict[int, Future] = {}
        self.turn = 0
        self.arrived = asyncio.Condition()

    async def call(self, number: int, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Make call ``number``, after all that came before it; returns its result."""
        async with self.arrived:
            await self.arrived.wait_for(lambda: self.turn == number)
            try:
                future = self.futures[number] = self._operation(name)(*args, **kwargs)
            finally:
                self.turn += 1
                self.arrived.notify_all()
        try:
            return await asyncio.wrap_future(future)
        finally:
            del self.futures[number]

    def _operation(self, name: str) -> Callable[..., Future]:
        return self.client.submit if name == "submit" else partial(self.client.call, name)

    async def cancel(self, number: int) -> bool:
        """Cancel a call that has not started."""
        return number in self.futures and self.futures[number].cancel()

    async def shutdown(self, cancel_pending: bool) -> None:
        await asyncio.to_thread(self.client.shutdown, cancel_pending=cancel_pending)


class RemoteFuture(Future):
    """The result of a call that was sent; ``cancel`` asks the other side first."""

    def __init__(self, cancel: Callable[[], bool]) -> None:
        super().__init__()
        self._cancel_there = cancel

    def cancel(self) -> bool:
        return not self.done() and self._cancel_there() and super().cancel()


class RemoteTrainingClient(TrainingClient):
    """As ``AsyncTrainingClient``, over the network.

    ``optim_step`` takes no optimizer: the client on the other side was told to make one.

    Args:
        make: called there, without arguments; returns an ``AsyncTrainingClient``.
        address: ``ray://HOST:10001`` of a cluster, ``auto`` for the one that this machine belongs
            to, ``local`` to start one here.
        max_workers: threads for callbacks.
        options: of the actor: ``num_gpus``, ``num_cpus``, ``resources``, ``runtime_env``, ...

    Raises:
        ImportError: Ray is not installed.
    """

    def __init__(
        self, make: Callable[[], Any], address: str, *, max_workers: int = 2, **options: Any
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                "a model on another machine takes Ray: pip install 'rlmodules[ray]'"
            ) from error
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(address=address, log_to_driver=False)
        options = {"num_cpus": 1, "max_concurrency": 10_000} | options
        self._actor = ray.remote(Service).options(**options).remote(make)
        self._sending, self._helpers = Lane("sending"), Helpers(max_workers)
        self._number, self._lock = 0, threading.Lock()
        self._unsent: dict[int, RemoteFuture] = {}

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """Call ``fn`` here; futures given to it are awaited."""
        return self._helpers.submit(fn, *args, **kwargs)

    def shutdown(self, *, wait: bool = True, cancel_pending: bool = False) -> None:
        """End after all that was called; the actor ends too, and a Ray that was started here."""
        self._sending.shutdown(wait=wait, cancel_pending=cancel_pending)
        if cancel_pending:
            for future in list(self._unsent.values()):
                Future.cancel(future)  # nobody there knows of it
        self._helpers.shutdown(wait=wait, cancel_pending=cancel_pending)
        if self._actor is None:
            return
        ended = self._actor.shutdown.remote(cancel_pending)
        if wait:
            self._ray.get(ended)
            self._ray.kill(self._actor)
            if self._started:
                self._ray.shutdown()
        self._actor = None

    def call(self, name: str, *args: Any, **kwargs: Any) -> Future:
        """Send a call in its turn; futures among its arguments are awaited before.

        Raises:
            ValueError: an optimizer is given, whose parameters cannot be those over there.
        """
        if name == "optim_step" and any(x is not None for x in args):
            raise ValueError(
                "optim_step takes no optimizer here: the client on the other side makes its own"
                " (AsyncTrainingClient(..., optimizer=partial(torch.optim.AdamW, lr=...)))"
            )
        args, kwargs = snapshot(args), snapshot(kwargs)
        with self._lock:
            number, self._number = self._number, self._number + 1
            future = self._unsent[number] = RemoteFuture(lambda: self._cancel(number))
            # Not as arguments: the lane would wait for the very future that it is to fulfil.
            self._sending.submit(lambda: self._send(future, number, name, args, kwargs))
        return future

    def _send(
        self, future: Future, number: int, name: str, args: tuple, kwargs: dict[str, Any]
    ) -> None:
        self._unsent.pop(number, None)
        try:
            ready = tuple(map(resolved, args)), resolved(kwargs)
            sent = self._actor.call.remote(number, name, *ready)
        except BaseException as error:  # a callback's, or of what cannot be sent
            # The number must not be missing there, or all that follows would wait for it.
            self._actor.call.remote(number, "submit", (_nothing,), {})
            future.set_exception(error)
            return
        sent.future().add_done_callback(lambda answer: self._hand_over(answer, future))

    def _hand_over(self, answer: Future, future: Future) -> None:
        if future.cancelled():
            return
        error = answer.exception()
        if error is None:
            future.set_result(answer.result())
            return
        # Ray's own errors are of the type that was raised there, but not through a Ray client.
        error = getattr(error, "as_instanceof_cause", lambda: error)()
        if isinstance(error, self._ray.exceptions.TaskCancelledError):
            Future.cancel(future)  # its call there is; word of that may come before the answer
        else:
            future.set_exception(error)

    def _cancel(self, number: int) -> bool:
        return self._ray.get(self._actor.cancel.remote(number))


def _nothing() -> None:
    pass
