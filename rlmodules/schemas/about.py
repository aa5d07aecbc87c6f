"""What the YAML of a run may ask about it: ``${about_run:name}``."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlmodules.trackers.naming import group_of, name_of, swept_by, tag_of


def about_run(what: str, *, _root_: DictConfig) -> Any:
    """What trackers are told of a run.

    Args:
        what: ``name``, ``group``, ``swept``, or the group of which the choice is asked for.
    """
    if not HydraConfig.initialized() or _root_.paths.output_dir is None:  # only composed
        return None
    hydra = HydraConfig.get()
    told, folder = list(hydra.overrides.task), Path(_root_.paths.output_dir)
    in_sweep = hydra.mode == RunMode.MULTIRUN
    if what == "group":
        return group_of(folder, in_sweep=in_sweep)
    if what == "swept":
        return swept_by(folder, told)
    if what == "name":
        return name_of(folder, told, hydra.runtime.choices["algo"], in_sweep=in_sweep)
    chosen = hydra.runtime.choices.get(what)
    if what == "env" and not _root_.env:
        return None
    return tag_of(_root_.model.name if (what, chosen) == ("model", "hf") else chosen)
