"""One event loop, in a thread of its own, for all that environments await.

One for all, so that what episodes share (clients, locks) belongs to the loop that it is used in.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop, which runs from the first call on."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="environments", daemon=True).start()
        return _loop


def start(coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
    """Have ``coroutine`` awaited; whoever wants its result waits for the future."""
    return asyncio.run_coroutine_threadsafe(coroutine, event_loop())
