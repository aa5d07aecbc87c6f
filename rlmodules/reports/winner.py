"""The command that runs a setting again."""

import shlex
import sys
from pathlib import Path

from rlmodules.reports.comparison import Row
from rlmodules.reports.runs import Run, parted

OF_THE_SWEEP = ("hydra", "sweep", "hparams_search", "ckpt_path", "paths.output_dir")
"""Beginnings of overrides that say how a run was started, not what it is."""


def command_of(row: Row) -> str:
    """What to type for the setting's first run that is done; empty if nothing tells."""
    done = [run for run in row.setting.runs if run.done and run.overrides]
    return shlex.join([*program(), *of_the_run(done[0])]) if done else ""


def of_the_run(run: Run) -> list[str]:
    """Its overrides without those of the sweep that started it."""
    return [text for text in run.overrides if not parted(text)[0].startswith(OF_THE_SWEEP)]


def program() -> list[str]:
    """How this program was called."""
    name = Path(sys.argv[0]).name
    return [name] if name.startswith("rlmodules") else ["python", "train.py"]
