"""Files and folders that are there whole or not at all, whatever ends the process."""

import errno
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SUFFIX = ".partial"
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file is larger than allowed here (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the folder is not writable",
    errno.EPERM: "the folder is not writable",
    errno.EIO: "the disk reports an error",
}
ONLY_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Of these errors nobody has to ask whether they came of reading."""


class StorageError(OSError):
    """A file could not be written: which, why, how large it is, and how much room there is."""


@contextmanager
def replacing(
    path: Path, exchange: Callable[[Path, Path], None] = os.replace, *, needs: int | None = None
) -> Iterator[Path]:
    """Where to write what takes the place of ``path``, as soon as it is complete and on the disk.

    If the block fails, ``path`` is what it was. The folders above it are made, and what processes
    that are no more have left half-written beside it is removed.

    Args:
        path: of a file or a folder.
        exchange: moves what was written (first argument) to ``path`` (second).
        needs: bytes that will be written, where that is known.

    Raises:
        StorageError: the disk does not take it.
        OSError: with ``os.replace``, ``path`` is a folder with something in it.
    """
    partial, written = Path(path.name), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        # Beside its place: a move from another file system is a copy, which can be cut short.
        with TemporaryDirectory(
            prefix=f".{path.name}.{socket.gethostname()}-{os.getpid()}.",
            suffix=SUFFIX,
            dir=path.parent,
            ignore_cleanup_errors=True,
        ) as folder:
            partial = Path(folder) / path.name
            try:
                yield partial
                parts = [*partial.rglob("*"), partial]
                ordinary_mode(*(part for part in parts if part.suffix == ".safetensors"))
                for part in parts:
                    flush(part)
                exchange(partial, path)
            finally:
                written = size_of(partial) if partial.exists() else 0
            flush(path.parent)
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise StorageError(_message(path, reason, needs, written)) from error


def write_text(path: Path, text: str) -> None:
    """Have ``path`` hold ``text``, or what it held before."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path, needs: int | None = None) -> Iterator[None]:
    """Say of ``path`` what the disk does not take while the block runs.

    Raises:
        StorageError: instead of an error of the disk's.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError) or (reason := _reason(error)) is None:
            raise
        raise StorageError(_message(path.absolute(), reason, needs, 0)) from error


def appending(path: Path, data: bytes) -> None:
    """Add ``data`` to the end of a file, all of it or nothing.

    Raises:
        StorageError: the disk does not take it.
    """
    size = path.stat().st_size if path.exists() else 0
    with writing(path, len(data)):
        try:
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            if path.exists():
                os.truncate(path, size)
            raise


def remove_leftovers(folder: Path, *, below: bool = False) -> list[Path]:
    """Remove what processes of this machine that are no more were writing; returns it.

    Args:
        below: in all folders below, too.
    """
    found = folder.rglob(f".*{SUFFIX}") if below else folder.glob(f".*{SUFFIX}")
    gone = [path for path in found if _is_left(path)]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def _is_left(path: Path) -> bool:
    owner = re.fullmatch(rf"\..*\.(.+)-(\d+)\.[^.]+{re.escape(SUFFIX)}", path.name)
    if owner is None or owner[1] != socket.gethostname():
        return False  # of another machine, where it may be growing
    try:
        os.kill(int(owner[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def explained(error: BaseException, folder: Path) -> str | None:
    """Which file in ``folder`` the disk did not take, if ``error`` is about that; else None."""
    if isinstance(error, StorageError):
        return str(error)
    reading = isinstance(error, OSError) and error.errno not in ONLY_WRITING
    reason = None if reading else _reason(error)
    named = getattr(error, "filename", None) or f"a file in {folder}"
    return None if reason is None else _message(Path(named), reason, None, 0, folder)


def unwritten(error: BaseException | None) -> StorageError | None:
    """The ``StorageError`` that ``error`` came of."""
    while error is not None and not isinstance(error, StorageError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: BaseException) -> str | None:
    """Why the disk did not take what was written; None if that is not what ``error`` is about."""
    if isinstance(error, OSError) and error.errno is not None:
        return REASONS.get(error.errno)
    text = str(error)
    if found := re.search(r"\(os error (\d+)\)", text):  # safetensors
        return REASONS.get(int(found[1]))
    if "inline_container" in text or "PytorchStreamWriter" in text:  # torch says no reason
        return "the disk does not take it"
    return None


def _message(
    path: Path, reason: str, needs: int | None, written: int, folder: Path | None = None
) -> str:
    size = f"it needs {human(needs)}" if needs else f"{human(written)} of it had been written"
    kept = "what was there before is as it was" if path.exists() else "nothing is left of it"
    return (
        f"{path} could not be written: {reason}. {size[0].upper()}{size[1:]},"
        f" {human(free_space(folder or path.parent))} are free; {kept}. Make room, or choose"
        " another folder (hydra.run.dir, output_dir, XDG_CACHE_HOME)"
    )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(part.stat().st_size for part in (path, *path.rglob("*")) if part.is_file())


def free_space(folder: Path) -> int:
    """Bytes that can be written in ``folder``, or where it would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def human(count: int) -> str:
    """``1.2 GB``"""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def swap(new: Path, place: Path) -> None:
    """Put ``new`` in its place; an old folder is moved aside first and deleted afterwards."""
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    if place.exists():
        os.replace(place, old)
    try:
        os.replace(new, place)
    except OSError:
        if old.exists():
            os.replace(old, place)
        raise
    flush(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ordinary_mode(*files: Path) -> None:
    """Let others read what was written, as far as the umask does: safetensors lets nobody."""
    mask = os.umask(0o022)  # it can be read by setting it alone
    os.umask(mask)
    for path in files:
        path.chmod(0o666 & ~mask)
