"""A sweep over a grid: named, checked, recorded, run by any launcher, and summed up."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from rlmodules.resuming.folder import held
from rlmodules.sweeping.board import Board
from rlmodules.sweeping.commands import going_on, launcher_name, typed
from rlmodules.sweeping.elsewhere import is_going_on, launch
from rlmodules.sweeping.grid import covering, make_grid
from rlmodules.sweeping.jobs import FAILURE, Job, read_failure, read_result
from rlmodules.sweeping.plan import Plan, read_plan, require_same, write_plan
from rlmodules.sweeping.run_jobs import Interrupts, run_jobs
from rlmodules.sweeping.summary import summarize

COMPOSED = 64
"""Jobs that are all composed before the first one starts (a third of a second each); of more, so
many that every value is among them."""
PATIENCE = 10.0
"""Seconds in which what is left of a sweep that was killed may save and stop."""
INTERRUPTED = 130


def sweep(
    arguments: Sequence[str], config: DictConfig, context: HydraContext, launcher: Launcher
) -> list[float | None]:
    """Run every combination of the values in ``arguments``; their values, in this order.

    Raises:
        ValueError: an option has no list of values, or the folder holds another sweep.
        SystemExit: it was stopped, or a job failed.
    """
    console = Console()
    parser = OverridesParser.create(config_loader=context.config_loader)
    grid = make_grid(parser.parse_overrides(list(arguments)))
    folder = Path(config.hydra.sweep.dir).absolute()
    with held(folder):
        if (old := read_plan(folder)) is not None:
            require_same(folder, old.grid, grid)
            grid = old.grid  # its folders' names
        jobs = [
            replace(job, folder=folder / job.folder, number=number)
            for number, job in enumerate(grid.jobs)
        ]
        for job in covering(jobs, COMPOSED):
            context.config_loader.load_sweep_config(config, list(job.overrides))
        plan = Plan(grid, launcher_name(config), tuple(typed()))
        write_plan(folder, plan)
        OmegaConf.save(config, folder / "multirun.yaml")
        console.print(f"Sweep of {len(jobs)} jobs in {folder}", soft_wrap=True, highlight=False)
        due = due_jobs(jobs, retry=config.sweep.retry_failed)
        require_idle(due)
        with Board(jobs, config.optimized_metric, console) as board:
            stopped = not run(due, config, launcher, board)
        line = going_on(plan.command, folder)
        failed = summarize(jobs, folder, config.optimized_metric, line, console)
    if stopped:
        sys.exit(INTERRUPTED)
    if failed:
        sys.exit(1)
    return [(read_result(job.folder) or {}).get("value") for job in jobs]


def run(jobs: Sequence[Job], config: DictConfig, launcher: Launcher, board: Board) -> bool:
    """Run ``jobs`` on ``launcher``; False if somebody stopped them."""
    if not jobs:
        return True
    if not hasattr(launcher, "runner"):
        return launch(jobs, launcher, board, here=launcher_name(config) == "basic")
    with Interrupts() as interrupts:
        run_jobs(jobs, launcher.runner(), board, interrupts)
    return not interrupts.count


def due_jobs(jobs: Sequence[Job], *, retry: bool) -> list[Job]:
    """Those that are not done; of those that failed none, or all (``sweep.retry_failed``)."""
    due = []
    for job in jobs:
        failed = read_failure(job.folder) is not None
        if read_result(job.folder) is None and (retry or not failed):
            (job.folder / FAILURE).unlink(missing_ok=True)
            due.append(job)
    return due


def require_idle(jobs: Sequence[Job]) -> None:
    """
    Raises:
        ValueError: of a sweep that was killed, jobs still go on.
    """
    until = time.monotonic() + PATIENCE
    while going := [job.folder for job in jobs if is_going_on(job.folder)]:
        if time.monotonic() > until:
            raise ValueError(
                "of this sweep, jobs still go on (on a cluster perhaps):"
                f" {', '.join(map(str, going))}; wait for them, or end them, and repeat the command"
            )
        time.sleep(0.5)
