"""The study's journal: a file that one adds to, which a killed process can leave torn."""

import json
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from datamodules.atomic import writing


def open_journal(path: Path) -> JournalStorage:
    """The journal at ``path``, made where there is none; a torn last line is taken off.

    Optuna reads a file whose last line is torn, but what it then adds ends up on that line, and the
    file can never be read again.

    Raises:
        ValueError: a line before the last is no entry, or the file is another kind of file.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = JournalFileSymlinkLock(str(path))
        lock.acquire()
        try:
            if path.exists():
                _mend(path)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _mend(path: Path) -> None:
    good = 0
    with path.open("rb+") as file:
        for number, line in enumerate(file, start=1):
            if not _is_entry(line):
                if file.read(1):
                    raise ValueError(
                        f"{path}, line {number} is no entry of a study: if the file is one of"
                        " Optuna's, take that line out; otherwise give hydra.sweeper.storage"
                        " another place"
                    )
                break
            good += len(line)
        file.truncate(good)


def _is_entry(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
