"""Files and folders that are there whole or not at all, whatever ends the process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def replacing(path: Path, exchange: Callable[[Path, Path], None] = os.replace) -> Iterator[Path]:
    """Where to write what takes the place of ``path``, as soon as it is complete and on the disk.

    If the block fails, ``path`` is what it was. The folders above it are made.

    Args:
        path: of a file or a folder.
        exchange: moves what was written (first argument) to ``path`` (second).

    Raises:
        OSError: it cannot be written; or, with ``os.replace``, ``path`` is a folder with something
            in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place: a move from another file system is a copy, which can be cut short.
    with TemporaryDirectory(
        prefix=f".{path.name}.", suffix=".partial", dir=path.parent, ignore_cleanup_errors=True
    ) as folder:
        partial = Path(folder) / path.name
        yield partial
        for part in (*partial.rglob("*"), partial):
            flush(part)
        exchange(partial, path)
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
