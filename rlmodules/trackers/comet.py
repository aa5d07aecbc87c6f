"""Comet: offline archives until one says otherwise."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rlmodules.resuming.changes import flatten
from rlmodules.trackers.identity import id_of, new_id, note
from rlmodules.trackers.packages import require_package
from rlmodules.trackers.rows import AXES


class Comet(Logger):
    """An experiment of Comet's.

    (Lightning's own begins when it is made, and what it logs offline is disabled.)

    Args:
        folder: the run's, which remembers the key; offline archives lie in its ``comet/``.
        project, workspace: of Comet.
        name: of the experiment.
        group: the sweep that it is a job of.
        tags: a list, or a mapping of which the values count.
        online: whether to log to comet.com, which needs COMET_API_KEY, or for ``comet upload``.
        kwargs: further fields of ``comet_ml.ExperimentConfig``.

    Raises:
        ValueError: comet_ml is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        project: str = "rlmodules",
        workspace: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | Sequence[str] = (),
        online: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        require_package("comet_ml", "comet")
        self.folder, self.project, self.workspace = Path(folder), project, workspace
        self.online, self.group, self.run_name = online, group, name
        self.tags = list(tags.values() if isinstance(tags, Mapping) else tags or ())
        self.options = {"log_code": False, "parse_args": False, "auto_output_logging": "simple"}
        self.options |= {"display_summary_level": 0, "log_git_patch": False} | kwargs
        self._experiment: Any = None
        self.settings: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str | None:
        return id_of(self.folder, "comet")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The experiment of ``comet_ml``, begun when it is first asked for."""
        if self._experiment is None:
            os.environ["COMET_DISABLE_AUTO_LOGGING"] = "1"  # read when it is imported
            import comet_ml

            known = id_of(self.folder, "comet")
            archives = self.folder / "comet"
            archives.mkdir(parents=True, exist_ok=True)
            config = comet_ml.ExperimentConfig(
                offline_directory=str(archives), name=self.run_name, tags=self.tags, **self.options
            )
            self._experiment = comet_ml.start(
                workspace=self.workspace,
                project=self.project,
                experiment_key=known or new_id(),
                mode="get" if known else "create",
                online=self.online,
                experiment_config=config,
            )
            self._experiment.log_parameters(self.settings)
            if self.group:
                self._experiment.log_other("group", self.group)
            note(self.folder, comet=self._experiment.get_key())
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The settings, for when the run begins: a run that is refused before leaves none."""
        self.settings = dict(flatten(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = metrics.get("epoch", metrics.get("iteration"))
        self.experiment.log_metrics(dict(metrics), step=step, epoch=epoch)

    @rank_zero_only
    def log_rows(
        self, name: str, rows: Sequence[Mapping[str, Any]], axes: Mapping[str, float]
    ) -> None:
        """Log a table as an asset, with its axes as columns."""
        counts = {axis: axes[axis] for axis in AXES if axis in axes}
        data = [[*counts.values(), *row.values()] for row in rows]
        file = f"{name}-{int(axes['step']):06d}.csv"
        self.experiment.log_table(file, tabular_data=data, headers=[*counts, *rows[0]])

    @rank_zero_only
    def end(self, how: str) -> None:
        if self._experiment is not None:
            self._experiment.log_other("ended", how)
            self._experiment.end()
            self._experiment = None
