"""What stands behind a name in the settings: files' contents, by digest."""

import hashlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

from rlmodules.resuming.changes import Settings

READ_BY = ("env.", "reward.", "model.name")
"""Options whose files are looked into; of ``data.``, the rows are compared as they were read."""
WHOLE = 2**28
"""Bytes of a file of which all are read; of a larger one (weights), its size and 256 pieces."""
PIECE = 2**20


def with_contents(settings: Settings) -> Settings:
    """``settings``, in which names of files, folders and functions carry their contents' digest."""
    named = {
        name: place
        for name, value in settings.items()
        if name.startswith(READ_BY)
        and not name.endswith("_")  # ``_target_``: Hydra's own
        and isinstance(value, str)
        and value
        if (place := place_of(value, functions=name != "model.name")) is not None
    }
    return settings | {name: entry(settings[name], digest(place)) for name, place in named.items()}


def entry(shown: str, found: str) -> dict[str, Any]:
    """A value that is compared by a digest."""
    return {"shown": shown, "digest": found}


def code_of(given: Any) -> dict[str, Any] | None:
    """The name of a function, or of an object's class, compared by its source where it is known."""
    if given is None:
        return None
    named = given if hasattr(given, "__qualname__") else type(given)
    try:
        source = inspect.getsource(named)
    except (OSError, TypeError):
        source = named.__qualname__
    return entry(named.__qualname__, hashlib.sha256(source.encode()).hexdigest()[:32])


def place_of(value: str, *, functions: bool) -> Path | None:
    """The file or folder that ``value`` names; None if it is none.

    Args:
        functions: ``module:function`` names the module's file.
    """
    if functions and re.fullmatch(r"[\w.]+:\w+", value):
        try:
            spec = importlib.util.find_spec(value.partition(":")[0])
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None
    try:
        return Path(value) if Path(value).exists() else None
    except OSError:  # too long for a file's name
        return None


def digest(place: Path) -> str:
    """Changes with the bytes of a file, or with names and bytes of a folder's files."""
    state = hashlib.sha256()
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if path.is_file():
            state.update(str(path.relative_to(place)).encode())
            _add_bytes(state, path)
    return state.hexdigest()[:32]


def _add_bytes(state: Any, path: Path) -> None:
    size = path.stat().st_size
    step = PIECE if size <= WHOLE else size // 256
    state.update(str(size).encode())
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            state.update(file.read(PIECE))
