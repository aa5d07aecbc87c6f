"""``hydra/sweeper=search``, which ``hparams_search=`` chooses."""

import importlib.util
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SearchSweeper(Sweeper):
    """Has Optuna propose what the jobs of a sweep are (``rlmodules.sweeping.search``).

    Its options are those of ``conf/hydra/sweeper/search.yaml``.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.composed = hydra_context, config
        self.own_launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        if importlib.util.find_spec("optuna") is None:
            raise ValueError('hparams_search= needs Optuna: pip install "rlmodules[sweep]"')
        from rlmodules.sweeping.search.begin import from_hydra

        return from_hydra(self.composed, self.context, self.own_launcher, arguments)
