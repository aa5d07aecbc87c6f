"""Every option as a schema in Hydra's ConfigStore, so that typos and wrong types fail.

``derive`` writes them into ``nodes``, from the signatures of what is configured; nothing of that is
imported here.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from rlmodules.checks import device_options
from rlmodules.resuming.changes import flatten
from rlmodules.resuming.folder import agreed_folder
from rlmodules.schemas.about import about_run
from rlmodules.schemas.names import explain as explain
from rlmodules.schemas.names import name_objectives as name_objectives
from rlmodules.schemas.names import refuse_contradictions as refuse_contradictions
from rlmodules.schemas.names import refuse_unknown as refuse_unknown
from rlmodules.schemas.names import require_told as require_told
from rlmodules.schemas.typed import quote_paths as quote_paths

REQUIRED = "${required:}"
"""In YAML: has to be given. (``???`` says so too, but leaves the default of a schema in place.)"""
NAMES_A_FILE = re.compile(r"^ckpt_path$|^model\.name$|\.(eval_)?path$")
"""Options that may."""


@cache
def register() -> None:
    """Make the schemas known as ``GROUP/schema/NAME``, and the resolvers that YAML uses."""
    from rlmodules.schemas.nodes import NODES  # so that `derive` works where there are none yet

    store = ConfigStore.instance()
    for group, nodes in NODES.items():
        for name, node in nodes.items():
            store.store(group=f"{group}/schema", name=name, node=node, package=group)
    for name in ("accelerator", "devices"):
        OmegaConf.register_new_resolver(
            name, lambda device, name=name: device_options(device)[name], replace=True
        )
    OmegaConf.register_new_resolver("own_folder", own_folder, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("sweep_root", sweep_root, replace=True)
    OmegaConf.register_new_resolver("about_run", about_run, replace=True)
    OmegaConf.register_new_resolver("required", required, replace=True)
    OmegaConf.register_new_resolver("product", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("heldout", carried_heldout, replace=True)
    OmegaConf.register_new_resolver("unless", unless, replace=True)


def required() -> None:
    """
    Raises:
        ValueError: always; ``train.py`` names the value before.
    """
    raise ValueError("a value that has to be given was left open")


def own_folder(path: str) -> str:
    """A folder that is made for this run alone: ``path``, or ``path-2`` and so on."""
    return str(agreed_folder(path))


def sweep_root(output_root: str) -> str:
    """Where sweeps go."""
    return "multirun" if output_root == "outputs" else f"{output_root}/multirun"


def take_files_from(start: Path, cfg: DictConfig) -> None:
    """Have relative names of files mean those in ``start``, wherever the run works.

    (``hydra.job.chdir=true`` has it work in its own folder.)
    """
    if start == Path.cwd():
        return
    for name, value in flatten(OmegaConf.to_container(cfg)):
        if not isinstance(value, str) or not value or "${" in value:
            continue
        written = name in ("out", "paths.output_root")
        if written or (NAMES_A_FILE.search(name) and (start / value).exists()):
            OmegaConf.update(cfg, name, str(start / value))


def unless(given: Any, default: str | None) -> str | None:
    """A default that another option, if it is given, stands for."""
    return default if given is None else None


def carried_heldout(path: str | None) -> str | None:
    """The held-out file beside a training file that the project carries; None for other files."""
    if path is None or not path.startswith("package:"):
        return None
    return path.replace("_train", "_heldout")
