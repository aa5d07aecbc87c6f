"""Rewards on disk, by all that they depend on: what was judged once is not judged again."""

import hashlib
import inspect
import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from datamodules.rewards.calling import Call

WAIT_S = 60.0
"""For another process that writes."""


class RewardCache:
    """An SQLite file that several processes and runs may share.

    The key is a digest of what the function was given, of its name, and of the source of its
    module: after an edit it is asked again.

    Args:
        path: the file; it is made where there is none.
        fn: whose rewards these are.
        identity: what they depend on besides.

    Raises:
        ValueError: the file is no such cache, or cannot be written.
    """

    def __init__(self, path: str, fn: Any, identity: str) -> None:
        self.path = Path(path).absolute()
        self._identity = f"{identity} {_source_of(fn)}"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as file, file:
                file.execute("CREATE TABLE IF NOT EXISTS rewards (key TEXT PRIMARY KEY, reward)")
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"reward.cache={path!r} cannot be used: {error}") from error

    def look_up(self, calls: Sequence[Call]) -> tuple[list[Any], list[int]]:
        """The rewards that are known, None for others, and the places of the latter."""
        keys = [self._key(call) for call in calls]
        with closing(self._open()) as file:
            query = "SELECT reward FROM rewards WHERE key = ?"
            found = [file.execute(query, (key,)).fetchone() for key in keys]
        rewards = [None if row is None else row[0] for row in found]
        return rewards, [place for place, row in enumerate(found) if row is None]

    def keep(self, calls: Sequence[Call], rewards: Sequence[Any]) -> None:
        """Note rewards, None included, which says that none applies."""
        plain = [None if reward is None else float(reward) for reward in rewards]
        rows = zip([self._key(call) for call in calls], plain, strict=True)
        with closing(self._open()) as file, file:
            file.executemany("INSERT OR REPLACE INTO rewards VALUES (?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=WAIT_S)

    def _key(self, call: Call) -> str:
        text = json.dumps([self._identity, *call], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _source_of(fn: Any) -> str:
    """A digest of the module that ``fn`` is of, for a prompt or a scale may stand beside it."""
    module = sys.modules.get(getattr(inspect.unwrap(fn), "__module__", None) or type(fn).__module__)
    try:
        source = inspect.getsource(module)  # type: ignore[arg-type]
    except (OSError, TypeError):
        source = ""
    return hashlib.sha256(source.encode()).hexdigest()
