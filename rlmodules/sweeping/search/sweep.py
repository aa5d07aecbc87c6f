"""A search as the command line asks for it: ``python train.py -m hparams_search=optuna ...``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from rlmodules.reports.winner import program
from rlmodules.sweeping.commands import going_on, launcher_name, typed
from rlmodules.sweeping.jobs import Job
from rlmodules.sweeping.search.begin import corners, make_plan, search
from rlmodules.sweeping.summary import compare_settings
from rlmodules.sweeping.sweep import INTERRUPTED, require_idle


def from_hydra(
    arguments: Sequence[str], config: DictConfig, context: HydraContext, launcher: Launcher
) -> dict[str, Any]:
    """
    Raises:
        ValueError: as ``make_plan`` and ``search``; or the launcher cannot pause single jobs.
        SystemExit: it was stopped.
    """
    plan, console = make_plan(config, arguments), Console()
    seed = f"seed={plan.space.seeds[0]}"
    for overrides in corners(plan.space):  # a bad option costs nothing
        context.config_loader.load_sweep_config(config, [*overrides, seed])
    runner = getattr(launcher, "runner", None)
    if runner is None:
        raise ValueError(
            "hparams_search= starts, pauses and stops single jobs, which"
            f" hydra/launcher={launcher_name(config)} cannot: leave it out"
        )
    folder = Path(config.hydra.sweep.dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
    require_idle([Job((), place) for place in sorted(folder.glob("trial=*"))])

    def compare(jobs: Sequence[Job]) -> None:
        compare_settings(jobs, folder, next(iter(plan.goals)), console)

    again = bool(config.sweep.retry_failed)
    found = search(plan, runner(), folder, program(), console, compare=compare, retry_failed=again)
    if found is None:
        line = going_on(typed(), folder)
        console.print(f"Stopped; go on with: {line}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
    return found
