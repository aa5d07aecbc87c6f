"""The launcher of processes, as Hydra's launchers are called."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from rlmodules.sweeping.board import Board
from rlmodules.sweeping.commands import program
from rlmodules.sweeping.jobs import LOG, Job, Outcome
from rlmodules.sweeping.processes import Processes
from rlmodules.sweeping.run_jobs import Interrupts, run_jobs
from rlmodules.sweeping.slots import cores, environments, gpus


def make_runner(
    config: DictConfig,
    slots: int | None = None,
    devices_per_job: int | None = None,
    folder: Path | None = None,
) -> Processes:
    """Slots for jobs like the one of ``config``, on what this machine has.

    Args:
        folder: in which they work; default: where one typed the command.

    Raises:
        ValueError: see ``slots.environments``.
    """
    device = str(config.algo.device or "")
    chosen = ":" in device  # one device of the machine, for all jobs
    own = environments(
        1 if slots is None and chosen else slots,
        _processes(config) if devices_per_job is None else devices_per_job,
        gpus=[] if chosen or device == "cpu" else gpus(),
        cores=cores(),
        threads=os.environ.get("OMP_NUM_THREADS"),
    )
    return Processes(program(config.hydra), own, folder or Path(config.hydra.runtime.cwd))


def _processes(config: DictConfig) -> int | None:
    """How many devices ``trainer.devices`` asks for by number."""
    devices = config.trainer.devices
    if OmegaConf.is_list(devices):
        return len(devices)
    return int(devices) if str(devices).isdecimal() and int(devices) else None


def launch(
    batch: Sequence[Sequence[str]],
    first: int,
    config: DictConfig,
    context: HydraContext,
    make: Callable[[], Processes],
) -> list[JobReturn]:
    """Run jobs that another sweeper has composed, and wait for all.

    Args:
        batch: overrides of each.
        first: number of the first.
    """
    jobs = []
    for number, overrides in enumerate(batch, first):
        composed = context.config_loader.load_sweep_config(config, list(overrides))
        with open_dict(composed):
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        folder = Path(composed.hydra.sweep.dir).absolute() / str(composed.hydra.sweep.subdir)
        jobs.append(Job(tuple(composed.hydra.overrides.task), folder, number=number))
    with Board(jobs, config.optimized_metric) as board, Interrupts() as interrupts:
        ended = run_jobs(jobs, make(), board, interrupts)
    outcomes = {job.number: outcome for job, outcome in ended}
    return [_returned(job, outcomes.get(job.number, Outcome("paused"))) for job in jobs]


def _returned(job: Job, outcome: Outcome) -> JobReturn:
    done = outcome.status == "done"
    said = f"{outcome.status}: {outcome.error} ({job.folder / LOG})"
    return JobReturn(
        overrides=list(job.overrides),
        status=JobStatus.COMPLETED if done else JobStatus.FAILED,
        _return_value=outcome.value if done else RuntimeError(said),
    )
