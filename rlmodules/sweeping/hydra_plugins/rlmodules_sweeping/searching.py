"""``hydra/sweeper=search``, which ``hparams_search=`` chooses: see ``rlmodules.sweeping.search``.

(Hydra imports this in every run, so what it needs is imported where it is needed.)
"""

import importlib.util
import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Has Optuna propose the settings whose jobs are run.

    Its options are those of ``conf/hydra/sweeper/search.yaml``, read from the config.
    """

    def __init__(self, **options: Any) -> None:
        pass

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.composed = hydra_context, config
        self.starts = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> dict[str, Any]:
        """
        Raises:
            SystemExit: it was refused or stopped.
        """
        if importlib.util.find_spec("optuna") is None:
            sys.exit('\nhparams_search= needs Optuna: pip install "rlmodules[sweep]"')
        from rlmodules.sweeping.search.sweep import from_hydra

        try:
            return from_hydra(arguments, self.composed, self.context, self.starts)
        except ValueError as error:
            sys.exit(f"\n{type(error).__name__}: {error}")
