"""A folder belongs to one run."""

import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.atomic import writing

TAKEN = "RLMODULES_FOLDERS"
"""Environment variable: the folders that a process took, for those that Lightning starts of it."""
TRACES = ("checkpoints", "config.yaml", "report.json")
"""What a run leaves in its folder."""
_taken: list[str] = []


class ForeignFolderError(ValueError):
    """The folder belongs to another run; nothing was written there."""


def is_follower() -> bool:
    """Whether another process of the same run, here or on another machine, has the folders."""
    ranks = ("LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK")
    return any(os.environ.get(name, "0") != "0" for name in ranks)


def new_folder(path: str | Path) -> Path:
    """``path``, made for whoever asks; where it is there already, ``path-2``, ``path-3`` and so on.

    Of several processes that ask at once, each has one of its own.
    """
    path = Path(path)
    if is_follower():
        return path
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    raise AssertionError("numbers do not end")


def agreed_folder(path: str | Path) -> Path:
    """As ``new_folder``, of which all processes of a run know that another program started.

    Under torchrun the first process makes it and tells the others; under SLURM it is named by the
    job; where nobody can tell them, as where each machine is started by hand, it has to be named.

    Raises:
        ValueError: it has to be.
    """
    told = os.environ.get
    if told("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(told("WORLD_SIZE", "1")) > 1:
        return _of_first_process(path)
    if told("SLURM_JOB_ID") and int(told("SLURM_NTASKS", "1")) > 1 and told("SLURM_STEP_ID"):
        return Path(path).parent.parent / f"slurm-{told('SLURM_JOB_ID')}.{told('SLURM_STEP_ID')}"
    if told("NODE_RANK", "0") != "0":
        raise ValueError(
            "hydra.run.dir: each machine of a run must be told the same folder, which this one"
            " cannot know: name it on all of them, hydra.run.dir=outputs/NAME"
        )
    return new_folder(path)


def _of_first_process(path: str | Path) -> Path:
    from torch.distributed import TCPStore  # heavy, and of use here alone

    told = os.environ
    port, key = int(told["MASTER_PORT"]), f"rlmodules/folder/{told['TORCHELASTIC_RESTART_COUNT']}"
    store = TCPStore(told["MASTER_ADDR"], port, is_master=False)
    if not is_follower():
        store.set(key, str(new_folder(path)))
    return Path(store.get(key).decode())


def run_folder(path: str | Path) -> Path:
    """As ``new_folder``, for scripts, which Lightning starts again for each process of a run: there
    the n-th folder that is asked for is the n-th of the process that began."""
    begun = json.loads(os.environ.get(TAKEN, "[]")) if is_follower() else []
    folder = Path(begun[len(_taken)]) if len(_taken) < len(begun) else new_folder(path)
    _taken.append(str(folder.absolute()))
    if not is_follower():
        os.environ[TAKEN] = json.dumps(_taken)
    return folder


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder`` while the block runs; the kernel ends it with the process.

    Raises:
        ForeignFolderError: another run is in it.
    """
    if is_follower():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ForeignFolderError(
                f"another run is going on in {folder}: wait for it, or give this one a folder of"
                " its own"
            ) from error
        yield
    finally:
        os.close(lock)


def require_own(folder: Path, ckpt_path: Path | None) -> None:
    """
    Args:
        ckpt_path: the checkpoint that the run goes on from.

    Raises:
        ForeignFolderError: ``folder`` holds another run.
    """
    if is_follower():
        return
    goes_on = ckpt_path is not None and folder.resolve() in ckpt_path.resolve().parents
    found = [name for name in TRACES if (folder / name).exists()]
    if found and not goes_on:
        raise ForeignFolderError(
            f"{folder} holds another run ({', '.join(found)}): choose another folder, or go on with"
            f" that run by ckpt_path={folder}"
        )
