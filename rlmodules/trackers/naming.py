"""What a run is called in trackers: its name is what differs, its group is the sweep."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlmodules.sweeping.jobs import JOB

LONGEST = 120
"""Characters of a name or group; Weights & Biases takes 128."""
LONGEST_TAG = 64
SWEEP = "multirun.yaml"
"""What stands in the folder of a sweep."""
SILENT = ("logger", "paths", "hydra", "resume", "ckpt_path", "run", "callbacks", "task", "trainer")
"""Groups of options that say nothing of what a run finds."""


def name_of(folder: Path, overrides: Iterable[str], algorithm: str, *, in_sweep: bool) -> str:
    """The name of a run.

    Args:
        folder: the run's; a sweep's job has it from what was swept: ``lr=3e-5,seed=1``.
        overrides: what the run was told: ``algo.learning_rate=3e-5``.
        algorithm: the name of a run that was told nothing.
        in_sweep: whether it is a job of a sweep.
    """
    if in_sweep or (folder / JOB).is_file():
        return cut(folder.absolute().relative_to(sweep_of(folder)).as_posix())
    told = [re.split("=", text, maxsplit=1) for text in spoken(overrides)]
    return cut(",".join("=".join([o.split(".")[-1], *value]) for o, *value in told) or algorithm)


def group_of(folder: Path, *, in_sweep: bool) -> str | None:
    """The name of the sweep that a run is a job of; None if it is none."""
    if in_sweep or (folder / JOB).is_file():
        return cut("/".join(sweep_of(folder).parts[-2:]))
    return None


def swept_by(folder: Path, overrides: Iterable[str]) -> list[str]:
    """The options that differ between the jobs of a sweep; alone, those that were overridden."""
    try:
        return list(json.loads((folder / JOB).read_text())["swept"])
    except FileNotFoundError:
        return [text.partition("=")[0] for text in spoken(overrides)]


def sweep_of(folder: Path) -> Path:
    """The folder of the sweep that a job's folder is in."""
    folder = folder.absolute()
    above = (path for path in folder.parents if (path / SWEEP).is_file())
    return next(above, folder.parent)


def spoken(overrides: Iterable[str]) -> list[str]:
    """The overrides that say what a run is of."""
    told = [text.lstrip("+~") for text in overrides]
    return [text for text in told if re.split(r"[.=/@]", text)[0] not in SILENT]


def cut(text: str) -> str:
    """``text``, or its beginning and an ellipsis."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def tag_of(value: Any) -> str:
    """A choice as a tag: of a path or a hub id the last part."""
    return str(value).rstrip("/").rsplit("/", 1)[-1][:LONGEST_TAG]
