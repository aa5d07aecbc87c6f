"""Trackio: a local database that its own dashboard shows, over its public functions."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rlmodules.trackers.identity import id_of, note
from rlmodules.trackers.packages import require_package

PLACE = "TRACKIO_DIR"
"""Environment variable: where it keeps its data. It is read once, when trackio is imported."""


class Trackio(Logger):
    """A run of Trackio's.

    Args:
        folder: the run's, which remembers the name.
        directory: of the database, unless TRACKIO_DIR says where it is.
        project, name, group: of Trackio.
        tags: become part of the config, for Trackio has no tags.
        space_id, server_url: where to log to instead, as of ``trackio.init``.

    Raises:
        ValueError: trackio is not installed; with the first row: the process has imported it with
            another directory.
    """

    def __init__(
        self,
        folder: str | Path,
        directory: str | Path,
        project: str = "rlmodules",
        name: str = "run",
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
        space_id: str | None = None,
        server_url: str | None = None,
    ) -> None:
        super().__init__()
        require_package("trackio", "trackio")
        self.folder = Path(folder)
        self.directory = Path(directory).absolute()
        self.project, self.run_name, self.group = project, name, group
        self.tags = dict(tags or {})
        self.server = {"space_id": space_id, "server_url": server_url}
        self.settings: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.run_name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``trackio.Run``, begun when it is first asked for."""
        if self._run is None:
            take_place(self.directory)
            import trackio

            known = id_of(self.folder, "trackio")
            name = known or free_name(self.project, self.run_name)
            self._run = trackio.init(
                self.project,
                name=name,
                group=self.group,
                config=self.settings | {"tags": self.tags},  # without it, the stored one is lost
                resume="must" if known else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
                **self.server,
            )
            note(self.folder, trackio=name)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The settings, for when the run begins: a run that is refused before leaves none."""
        self.settings = dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_rows(
        self, name: str, rows: Sequence[Mapping[str, Any]], axes: Mapping[str, float]
    ) -> None:
        """Log a table."""
        import trackio

        data = [list(row.values()) for row in rows]
        table = trackio.Table(columns=list(rows[0]), data=data)
        counts = {axis: value for axis, value in axes.items() if axis != "step"}
        self.experiment.log({name: table, **counts}, step=int(axes["step"]))

    @rank_zero_only
    def end(self, how: str) -> None:
        if self._run is not None:
            import trackio

            trackio.finish()
            self._run = None


def take_place(directory: Path) -> None:
    """Have Trackio keep its data in ``directory``, where nobody has said another.

    Raises:
        ValueError: it was imported before, with another.
    """
    if "trackio" not in sys.modules:
        os.environ.setdefault(PLACE, str(directory))
        return
    import trackio

    wanted = Path(os.environ.get(PLACE, directory))
    if Path(trackio.TRACKIO_DIR) != wanted:
        raise ValueError(
            f"logger.trackio.directory={directory}, but this process has imported trackio with"
            f" {trackio.TRACKIO_DIR}: import it later, or set {PLACE} before"
        )


def free_name(project: str, name: str) -> str:
    """``name``, or ``name-2`` and so on where the project has runs of that name: Trackio goes on
    with runs by their names."""
    import trackio

    try:
        taken = {run.name for run in trackio.Api().runs(project)}
    except ValueError:  # there is no such project yet
        return name
    number = 1
    while (free := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return free
