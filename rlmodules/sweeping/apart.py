"""A job of another launcher (joblib, submitit, Ray): a process of its own all the same.

In the launcher's process a run would have the command line of the sweep, which Lightning starts
again for each further process of a run.
"""

import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from rlmodules.resuming.folder import is_follower
from rlmodules.sweeping.commands import program
from rlmodules.sweeping.jobs import LOG, Job, Outcome, Running
from rlmodules.sweeping.plan import read_plan
from rlmodules.sweeping.processes import Processes

PLUGINS = Path(__file__).parent
"""Where ``hydra_plugins`` is, in a checkout."""
SECONDS = 0.2


def make_plugins_known() -> None:
    """Let Hydra find our launcher and sweepers, which it takes from ``hydra_plugins`` alone."""
    if (PLUGINS / "hydra_plugins").is_dir() and str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))


make_plugins_known()  # where a launcher's process unpickles `Apart`, before Hydra's own state


class Apart:
    """What another launcher calls for each job: ``python train.py``, waited for."""

    def __call__(self, cfg: Any) -> float | None:
        """Run the job whose config Hydra has set up.

        Raises:
            RuntimeError: it failed.
        """
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        plan = read_plan(folder.parent)
        swept = {j.folder.name: j.swept for j in plan.grid.jobs} if plan else {}
        overrides = tuple(hydra.overrides.task)
        job = Job(overrides, folder, swept.get(folder.name, {}), int(hydra.job.num))
        runner = Processes(program(hydra), [{}], Path(hydra.runtime.cwd))
        outcome = wait_for(runner.start(job, follows=is_follower()))
        if outcome.status == "failed":
            raise RuntimeError(f"{outcome.error} ({folder / LOG})")
        return outcome.value


def refuse_shared_process(hydra: DictConfig) -> None:
    """
    Raises:
        ValueError: another sweeper than ours has a launcher run jobs in its own processes.
    """
    chosen = hydra.runtime.choices
    if hydra.mode == RunMode.MULTIRUN and chosen["hydra/launcher"] != "basic":
        raise ValueError(
            f"hydra/sweeper={chosen['hydra/sweeper']} has hydra/launcher={chosen['hydra/launcher']}"
            " run jobs within its own processes, where trainer=ddp would start the whole sweep"
            " again: use hydra/sweeper=grid, or hydra/launcher=process"
        )


def wait_for(running: Running) -> Outcome:
    """How it ended; on Ctrl-C it is paused first."""
    while True:
        try:
            if (outcome := running.poll()) is not None:
                return outcome
            time.sleep(SECONDS)
        except KeyboardInterrupt:
            running.pause()
