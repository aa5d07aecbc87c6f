"""Checkpoints that are kept for a while, so that a run can be rolled back to one of them.

``rollback-12.last.ckpt`` is what ``last.ckpt`` was after 12 iterations or optimizer steps, and so
of any other file beside it. They are links, which take no room until the file that they are of is
replaced, and which keep what lies in shares beside it (``rlmodules.resuming.shares``).
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from datamodules.atomic import replacing
from rlmodules.resuming.shares import copy_checkpoint, remove_link, remove_unnamed
from rlmodules.resuming.torch_files import read_file

LAST = "last.ckpt"
NAME = re.compile(r"rollback-(\d+)\.(.+\.ckpt)")


def kept(folder: Path) -> dict[int, dict[str, Path]]:
    """After how many iterations or steps -> the files of then, by their own names."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("rollback-*.ckpt")):
        if name := NAME.fullmatch(path.name):
            found.setdefault(int(name[1]), {})[name[2]] = path
    return {at: files for at, files in sorted(found.items()) if LAST in files}


def keep(last: Path, folder: Path, at: int, most: int) -> None:
    """Keep the checkpoints in ``folder`` as those after ``at`` units, and of others the newest.

    Args:
        last: what a run went on from, or would: ``last.ckpt`` in ``folder``, or one elsewhere.
        most: how many to keep; those of later units are of a future that will not be.
    """
    place = folder / f"rollback-{at}.{LAST}"
    if last.parent.resolve() == folder.resolve():
        _link(last, place)
    else:
        copy_checkpoint(last, place)
    for path in folder.glob("*.ckpt"):
        if path.name != LAST and not NAME.fullmatch(path.name):
            _link(path, folder / f"rollback-{at}.{path.name}")
    before = kept(folder)
    for other in {*list(before)[:-most], *(later for later in before if later > at)}:
        for path in before[other].values():
            remove_link(path)


def go_back(folder: Path, at: int, changes: dict[str, Any]) -> None:
    """Have the checkpoints in ``folder`` be those after ``at`` units again.

    ``last.ckpt`` is the last to change, at once and whole.

    Args:
        changes: what ``last.ckpt`` is to hold besides.
    """
    files = kept(folder)[at]
    for path in folder.glob("*.ckpt"):
        if not NAME.fullmatch(path.name) and path.name not in files:
            path.unlink()
            remove_unnamed(path)
    for name in files.keys() - {LAST}:
        _link(files[name], folder / name)
        remove_unnamed(folder / name)
    held = read_file(files[LAST], mmap=True)
    with replacing(folder / LAST) as partial, partial.open("wb") as file:
        torch.save(held | changes, file)
    remove_unnamed(folder / LAST)


def _link(path: Path, place: Path) -> None:
    """Have ``place`` be ``path`` as it is now, at once; a copy where a disk has no links."""
    with replacing(place) as partial:
        try:
            os.link(path, partial)
        except OSError:
            shutil.copyfile(path, partial)
