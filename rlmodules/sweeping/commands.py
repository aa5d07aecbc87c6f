"""Command lines: what starts a job, and what goes on with a sweep."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rlmodules.sweeping.processes import quoted

HERE = Path(__file__).parents[2]
OF_THE_SWEEP = (
    "hydra.mode=",
    "hydra.run.",
    "hydra.sweep.",
    "hydra.launcher.",
    "hydra.sweeper.",
    "hydra/launcher=",
    "hydra/sweeper=",
)
"""Hydra's overrides that no job is told."""


def program(hydra: DictConfig) -> list[str]:
    """What Python runs for a job: ``train.py``, with the configs and options that the sweep has.

    Args:
        hydra: the sweep's ``hydra`` config.
    """
    script = HERE / "train.py"
    start = [str(script)] if script.is_file() else ["-m", "rlmodules.train"]
    found: Sequence[Mapping[str, Any]] = hydra.runtime.config_sources
    of = {source["provider"]: source["path"] for source in found if source["schema"] == "file"}
    if "command-line" in of:
        start += ["--config-dir", of["command-line"]]
    ours = {str(HERE / "conf"), str(HERE / "rlmodules" / "conf")}
    if "main" in of and of["main"] not in ours:
        start += ["--config-path", of["main"]]
    if hydra.job.config_name != "train":
        start += ["--config-name", hydra.job.config_name]
    told = hydra.overrides.hydra
    return [*start, *(o for o in told if not o.lstrip("+~").startswith(OF_THE_SWEEP))]


def launcher_name(config: DictConfig) -> str:
    """``process``, ``joblib``, ..."""
    return str(config.hydra.runtime.choices["hydra/launcher"])


def typed(argv: Sequence[str] | None = None) -> list[str]:
    """The command as one typed it: ``python train.py -m ...``."""
    name, *rest = sys.argv if argv is None else argv
    script = Path(name)
    return [*(["python", name] if script.suffix == ".py" else [script.name]), *rest]


def going_on(command: Sequence[str], folder: Path) -> str:
    """The line that goes on with the sweep in ``folder``, to be pasted."""
    try:
        shown = folder.relative_to(Path.cwd())
    except ValueError:
        shown = folder
    place = str(shown) if _is_plain(str(shown)) else quoted(shown)
    once = ("hydra.sweep.dir=", "sweep.retry_failed=")
    kept = [word for word in command if not word.startswith(once)]
    return shlex.join([*kept, f"hydra.sweep.dir={place}"])


def _is_plain(text: str) -> bool:
    """Whether Hydra reads it as it is."""
    return all(character.isalnum() or character in "/-_.:" for character in text)
