"""Calls of a reward function where they happen: awaited, many at once, tried again.

Run as a module it is a process that calls one function (``running.Process``). So it imports next to
nothing.
"""

import asyncio
import importlib
import inspect
import itertools
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datamodules.guard import Failure, attempt, run_all
from datamodules.rewards.main_thread import noting_signals

LONGEST_WAIT_S = 60.0
PASSING = (408, 409, 425, 429)
"""HTTP states that may pass, besides those of the server's own failures."""
PASSING_ERRORS = {
    "ConnectionError",  # of Python and of requests
    "TimeoutError",
    "Timeout",  # requests
    "ChunkedEncodingError",
    "TransportError",  # httpx
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "APIConnectionError",  # openai, anthropic
    "URLError",
}
"""Names of exceptions, or of a base of theirs, that another try may not meet."""
_local = threading.local()


@dataclass(frozen=True)
class Work:
    """Calls to make of one function."""

    calls: list[tuple[tuple, dict]]
    at_once: int = 1
    retries: int = 0
    """How often a call that failed by what may pass (``is_passing``) is made again."""
    timeout_s: float | None = None
    """Of one call, where it is awaited or has a thread of its own."""
    logs: bool = False
    """Whether it is given ``log_metric``."""


def perform(fn: Callable[..., Any], work: Work) -> tuple[list[Any], list[tuple[str, Any]]]:
    """The result of each call, or its ``Failure``; and what was logged."""
    logged: list[tuple[str, Any]] = []
    if work.logs:
        log = {"log_metric": lambda name, value: logged.append((name, value))}
        work = replace(work, calls=[(args, kwargs | log) for args, kwargs in work.calls])
    if is_async(fn) and work.at_once > 1:
        return event_loop().run_until_complete(_gathered(fn, work)), logged
    tries = [partial(_tried, fn, call, work) for call in work.calls]
    if work.at_once > 1:
        tries = [partial(_closing_loop, one) for one in tries]
        return run_all(tries, timeout_s=_budget(work), workers=work.at_once), logged
    results = []
    for one in tries:  # nothing more is paid for once one has failed
        results.append(attempt(one))
        if isinstance(results[-1], Failure):
            break
    return results, logged


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calls of it are awaited, as far as can be seen before."""
    while isinstance(fn, partial):
        fn = fn.func
    both = inspect.unwrap(fn), getattr(fn, "__call__", None)  # noqa: B004
    return any(map(inspect.iscoroutinefunction, both))


def is_passing(error: BaseException) -> bool:
    """Whether another try may succeed: no connection, out of time, too many requests, a server
    that fails."""
    answer = getattr(error, "response", None)
    states = [getattr(error, name, None) for name in ("status_code", "status", "code")]
    for state in (getattr(answer, "status_code", None), *states):
        if isinstance(state, int):
            return state in PASSING or state >= 500
    return not PASSING_ERRORS.isdisjoint(base.__name__ for base in type(error).__mro__)


def wait_s(error: BaseException, tries: int) -> float:
    """Seconds to wait before the next try: twice as long each time, or as the server says."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        asked = float(headers.get("retry-after") or 0)
    except ValueError:  # a date
        asked = 0.0
    # Its own random numbers: training's are not touched.
    return min(max(asked, 0.5 * 2**tries * random.Random().uniform(0.5, 1)), LONGEST_WAIT_S)


def event_loop() -> asyncio.AbstractEventLoop:
    """This thread's own, the same from call to call, so that sessions of a reward outlive one."""
    if getattr(_local, "loop", None) is None or _local.loop.is_closed():
        _local.loop = asyncio.new_event_loop()
    return _local.loop


def _budget(work: Work) -> float | None:
    """Seconds that all tries of one call may take together."""
    if work.timeout_s is None:
        return None
    return work.timeout_s * (work.retries + 1) + LONGEST_WAIT_S * work.retries


def total_s(work: Work) -> float | None:
    """Seconds that all calls together may take; None for no limit."""
    one = _budget(work)
    if one is None or work.at_once == 1:
        return work.timeout_s
    return one * -(-len(work.calls) // work.at_once) + 1.0


def _closing_loop(call: Callable[[], Any]) -> Any:
    """``call`` in a thread that ends with it."""
    try:
        return call()
    finally:
        event_loop().close()


def _tried(fn: Callable[..., Any], call: tuple[tuple, dict], work: Work) -> Any:
    for tries in itertools.count():
        try:
            return _made(fn, call)
        except Exception as error:
            if tries >= work.retries or not is_passing(error):
                raise
            time.sleep(wait_s(error, tries))


def _made(fn: Callable[..., Any], call: tuple[tuple, dict]) -> Any:
    args, kwargs = call
    _have_event_loop()
    process = os.getpid()
    try:
        with noting_signals():
            result = fn(*args, **kwargs)
            if isinstance(result, AsyncIterable):
                result = _collected(result)
            if inspect.isawaitable(result):
                result = event_loop().run_until_complete(_awaited(result))
            return listed(result)
    finally:
        if os.getpid() != process:  # it forked, and the child came back
            os._exit(1)


def _have_event_loop() -> None:
    """For ``asyncio.get_event_loop()``, which ``asyncio.run`` leaves without one."""
    try:
        asyncio.get_event_loop()
    except RuntimeError:
        asyncio.set_event_loop(event_loop())


async def _awaited(result: Any) -> Any:
    return await result


async def _collected(results: AsyncIterable) -> list[Any]:
    return [result async for result in results]


async def _gathered(fn: Callable[..., Any], work: Work) -> list[Any]:
    places = asyncio.Semaphore(work.at_once)

    async def one(call: tuple[tuple, dict]) -> Any:
        async with places:
            return await _tried_async(fn, call, work)

    return list(await asyncio.gather(*map(one, work.calls)))


async def _tried_async(fn: Callable[..., Any], call: tuple[tuple, dict], work: Work) -> Any:
    args, kwargs = call
    for tries in itertools.count():
        began = time.monotonic()
        try:
            with noting_signals():
                result = fn(*args, **kwargs)
                if inspect.isawaitable(result):  # else a decorator awaits it itself
                    result = await asyncio.wait_for(result, work.timeout_s)
                return listed(result)
        except BaseException as error:
            if tries >= work.retries or not is_passing(error):
                took = time.monotonic() - began
                late = isinstance(error, TimeoutError | asyncio.TimeoutError)
                return Failure(
                    error, late and work.timeout_s is not None and took >= work.timeout_s
                )
            await asyncio.sleep(wait_s(error, tries))


def listed(result: Any) -> Any:
    """A generator, a tuple or an array of rewards as a list; what is none of those as it is."""
    if isinstance(result, str | bytes | dict | set | frozenset) or not hasattr(result, "__iter__"):
        return result
    return result.tolist() if hasattr(result, "tolist") else list(result)


def resolved(path: str) -> Any:
    """What stands at ``my_pkg.my_module:name``."""
    module, _, attribute = path.partition(":")
    found = importlib.import_module(module)
    for name in attribute.split("."):
        found = getattr(found, name)
    return found


def main() -> None:
    """Answer requests ``(seed, Work)`` of the process that started this one, until it is gone."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reward prints is no reply
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path[:], path = pickle.load(requests)
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    fn = attempt(partial(resolved, path))
    while True:
        try:
            seed, work = pickle.load(requests)
        except EOFError:
            return
        _seed(seed)
        done = ([fn], []) if isinstance(fn, Failure) else attempt(partial(perform, fn, work))
        replies.write(_pickled(([done], []) if isinstance(done, Failure) else done))
        replies.flush()


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, whatever it is in."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _seed(seed: int) -> None:
    """Have what a reward draws depend on the run's seed, as it does in its own process."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _pickled(done: tuple[list[Any], list[tuple[str, Any]]]) -> bytes:
    """Errors by name and text: their classes may not be known where they are read."""
    results, logged = done
    plain = [
        ("failed", type(r.error).__name__, str(r.error), r.overdue)
        if isinstance(r, Failure)
        else ("done", r)
        for r in results
    ]
    try:
        return pickle.dumps((plain, logged))
    except Exception as error:
        return pickle.dumps(([("failed", type(error).__name__, str(error), False)], []))


if __name__ == "__main__":
    main()
