"""``hydra/launcher=process``: see ``rlmodules.sweeping.launcher``.

(Hydra imports this in every run, so what it needs is imported where it is needed.)
"""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from rlmodules.sweeping.processes import Processes


class ProcessLauncher(Launcher):
    """Each job is a process of its own.

    Args:
        slots: how many run at the same time.
        devices_per_job: GPUs (without GPUs, processes) of each.
    """

    def __init__(self, slots: int | None = None, devices_per_job: int | None = None) -> None:
        self.slots, self.devices_per_job = slots, devices_per_job

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.config = hydra_context, config

    def runner(self, folder: Path | None = None) -> Processes:
        """What starts, pauses and ends single jobs, for sweepers that choose them one by one."""
        from rlmodules.sweeping.launcher import make_runner

        return make_runner(self.config, self.slots, self.devices_per_job, folder)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs of a sweeper that is not ours, and wait for all."""
        from rlmodules.sweeping.launcher import launch

        return launch(job_overrides, initial_job_idx, self.config, self.context, self.runner)
