"""Under which name each tracker knows a run: kept in the run's folder, so that curves go on."""

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text

FILE = "trackers.json"
"""In the run's folder: each tracker's id of the run, and where the run went on."""
WRITTEN = ("csv", "tensorboard")
"""Folders of trackers that are files in the run's own."""
CONTINUED = "continued_in"


def read(folder: Path) -> dict[str, Any]:
    """What ``folder`` knows of trackers."""
    try:
        return dict(json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return {}


def note(folder: Path, **entries: str) -> None:
    """Keep ``entries``."""
    write_text(folder / FILE, json.dumps(read(folder) | entries, indent=1))


def id_of(folder: Path, tracker: str) -> str | None:
    """The id that ``tracker`` knows the run by; None if it does not yet."""
    return read(folder).get(tracker)


def new_id() -> str:
    """32 letters and digits, which every tracker takes."""
    return uuid.uuid4().hex


def take_over(ckpt_path: Path | None, folder: Path) -> None:
    """Have trackers go on in ``folder`` with the curves of the run that ``ckpt_path`` is of.

    A run that another has gone on with already is not gone on with twice: a second one begins new
    curves with the rows so far.
    """
    if ckpt_path is None:
        return
    before = ckpt_path.absolute().parent.parent
    if before == folder.absolute():
        return
    for name in WRITTEN:
        if (before / name).is_dir() and not (folder / name).exists():
            shutil.copytree(before / name, folder / name)
    known, here = read(before), str(folder.absolute())
    if known and known.get(CONTINUED, here) == here:
        note(folder, **{k: v for k, v in known.items() if k != CONTINUED})
        note(before, **{CONTINUED: here})


def hand_back(ckpt_path: Path | None, folder: Path) -> None:
    """What ``take_over`` took is for another to go on with."""
    before = ckpt_path.absolute().parent.parent if ckpt_path else folder.absolute()
    known = read(before)
    if known.pop(CONTINUED, None) == str(folder.absolute()):
        write_text(before / FILE, json.dumps(known, indent=1))
