"""MLflow: a local SQLite file by default, which many jobs of a sweep create and write at once."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rlmodules.resuming.changes import flatten
from rlmodules.trackers.identity import id_of, note
from rlmodules.trackers.naming import spoken
from rlmodules.trackers.packages import require_package
from rlmodules.trackers.rows import DONE, FAILED, STOPPED, Once

STATUS = {DONE: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}
LONGEST = 6000
"""Characters of a parameter's value."""
BATCH = 100
"""Parameters that it takes at once."""
CONFIG = "config.yaml"
PARENT = "mlflow.parentRunId"


class MLflow(Logger):
    """A run of MLflow's, below one of its sweep.

    Args:
        folder: the run's, which remembers the id.
        directory: of the SQLite file and of artifacts, unless ``tracking_uri`` says where they go.
        tracking_uri: of a server, or another database.
        experiment_name: what MLflow lists runs under.
        run_name: of the run.
        group: the sweep that it is a job of; its run is the parent of this one.
        tags: of the run.

    Raises:
        ValueError: mlflow is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        directory: str | Path,
        tracking_uri: str | None = None,
        experiment_name: str = "rlmodules",
        run_name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        require_package("mlflow", "mlflow")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        self.folder, self.directory = Path(folder), Path(directory).absolute()
        self.local = not tracking_uri
        self.tracking_uri = tracking_uri or f"sqlite:///{self.directory / 'mlflow.db'}"
        self.experiment_name, self.run_name, self.group = experiment_name, run_name, group
        self.tags = {str(k): str(v) for k, v in (tags or {}).items() if v}
        self._client: Any = None
        self.settings: dict[str, Any] = {}
        self.run_id = ""
        self._over: Mapping[str, float] | None = None
        self._once = Once()
        self._had: dict[str, dict[int, float]] = {}

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str:
        return self.run_id

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``MlflowClient``; its run begins when it is first asked for."""
        if self._client is None:
            from mlflow import MlflowClient

            self.directory.mkdir(parents=True, exist_ok=True)
            with self._alone():  # the first creates the tables, which two at once cannot
                self._client = MlflowClient(self.tracking_uri)
                self.run_id = id_of(self.folder, "mlflow") or self._begin()
                self._client.update_run(self.run_id, status="RUNNING")
            note(self.folder, mlflow=self.run_id)
            self._log_settings()
        return self._client

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Without other processes, where the database is a file."""
        if not self.local:
            yield
            return
        with (self.directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _begin(self) -> str:
        experiment, tags = self._experiment_id(), dict(self.tags)
        if self.group:
            tags |= {"group": self.group, PARENT: self._parent(experiment)}
        run = self._client.create_run(experiment, tags=tags, run_name=self.run_name)
        return str(run.info.run_id)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        place = (self.directory / "artifacts").as_uri() if self.local else None
        try:
            return str(self._client.create_experiment(self.experiment_name, place))
        except MlflowException:  # it is there
            found = self._client.get_experiment_by_name(self.experiment_name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _parent(self, experiment: str) -> str:
        """The run of the sweep, made by its first job."""
        sweep = {"sweep": str(self.group)}
        found = self._client.search_runs([experiment], f"tags.sweep = '{self.group}'")
        if not found:
            found = [self._client.create_run(experiment, tags=sweep, run_name=self.group)]
            self._client.set_terminated(found[0].info.run_id)
        return str(found[0].info.run_id)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The settings, for when the run begins: a run that is refused before leaves none."""
        self.settings = dict(params)

    def _log_settings(self) -> None:
        """Once: as parameters, whole in an artifact.

        A parameter of MLflow's cannot change: what a resumed run has otherwise is a tag.
        """
        from mlflow.entities import Param, RunTag

        client = self._client
        known = client.get_run(self.run_id).data.params
        told = {option: self._fitting(str(value)) for option, value in flatten(self.settings)}
        new = [Param(option, value) for option, value in told.items() if option not in known]
        others = {option: value for option, value in told.items() if spoken([option])}
        changed = {o: v for o, v in others.items() if o in known and known[o] != v}
        tags = [RunTag(f"resumed.{option}", value) for option, value in changed.items()]
        with self._alone():
            for start in range(0, len(new), BATCH):
                client.log_batch(self.run_id, params=new[start : start + BATCH])
            for start in range(0, len(tags), BATCH):
                client.log_batch(self.run_id, tags=tags[start : start + BATCH])
            client.log_dict(self.run_id, self.settings, f"resumed/{CONFIG}" if known else CONFIG)

    def _fitting(self, value: str) -> str:
        said = f"… (all {len(value)} characters: artifact {CONFIG})"
        return value if len(value) <= LONGEST else value[: LONGEST - len(said)] + said

    @rank_zero_only
    def go_on(self, over: Mapping[str, float]) -> None:
        """Look what the run has of later steps: the same numbers are not logged twice."""
        self._over = over

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        now, step, client = int(time() * 1000), step or 0, self.experiment
        with self._alone():
            named = {
                mlflow_name(name): float(value)
                for name, value in self._once.of(metrics, step).items()
            }
            new = {n: v for n, v in named.items() if not self._has(n, v, step)}
            client.log_batch(self.run_id, [Metric(n, v, now, step) for n, v in new.items()])

    def _has(self, name: str, value: float, step: int) -> bool:
        """Whether it was logged already, before a kill."""
        if self._over is None or step < self._over["step"]:
            return False
        if name not in self._had:
            history = self._client.get_metric_history(self.run_id, name)
            self._had[name] = {metric.step: metric.value for metric in history}
        before = self._had[name].get(step)
        return before is not None and (before == value or name.startswith("time/"))

    @rank_zero_only
    def log_rows(
        self, name: str, rows: Sequence[Mapping[str, Any]], axes: Mapping[str, float]
    ) -> None:
        """Add to a table among the artifacts, which its page shows."""
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        counts = {axis: [value] * len(rows) for axis, value in axes.items()}
        columns = {"step": counts.pop("step")} | columns | counts  # the texts where one sees them
        with self._alone():
            self.experiment.log_table(self.run_id, columns, f"{name}.json")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: ``end`` does it; Lightning calls this after each of its loops."""

    @rank_zero_only
    def end(self, how: str) -> None:
        if self._client is not None:
            with self._alone():
                self._client.set_terminated(self.run_id, STATUS[how])


def mlflow_name(metric: str) -> str:
    """The name of a metric there, which takes no ``@``: ``val/pass_at_1``."""
    return metric.replace("@", "_at_")
