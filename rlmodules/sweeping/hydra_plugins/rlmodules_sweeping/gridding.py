"""``hydra/sweeper=grid``: see ``rlmodules.sweeping.sweep``.

(Hydra imports this in every run, so what it needs is imported where it is needed.)
"""

import sys
from collections.abc import Mapping
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from rlmodules.sweeping.apart import Apart
from rlmodules.sweeping.commands import launcher_name


class GridSweeper(Sweeper):
    """Runs every combination of the values that options are given.

    Args:
        params: options to sweep besides the command line's, as there: ``{seed: "0,1,2"}``.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.config = hydra_context, config
        in_process = launcher_name(config) == "basic"
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context,
            task_function=task_function if in_process else Apart(),
            config=config,
        )

    def sweep(self, arguments: list[str]) -> list[float | None]:
        """
        Raises:
            SystemExit: it was refused or stopped, or a job failed.
        """
        from rlmodules.sweeping.sweep import sweep

        told = [*(f"{option}={values}" for option, values in self.params.items()), *arguments]
        try:
            return sweep(told, self.config, self.context, self.launcher)
        except ValueError as error:
            sys.exit(f"\n{type(error).__name__}: {error}")
