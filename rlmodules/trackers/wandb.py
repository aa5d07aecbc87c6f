"""Weights & Biases: a run of its own for each run here, offline until one says otherwise."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rlmodules.trackers.identity import id_of, new_id, note
from rlmodules.trackers.rows import AXES, DONE


class WandB(WandbLogger):
    """``lightning``'s, with a run that nobody else logs to and that ends when the run does.

    Args:
        save_dir: the run's folder, which remembers the id.
        project: of Weights & Biases.
        name, group, id: of the run; default of id: one of its own.
        tags: a list, or a mapping of which the values count.
        offline: whether to keep all below ``save_dir``, for ``wandb sync``; default: what
            WANDB_MODE says, and where that is not set, yes.
        x_axis: what panels are drawn over at first.
        log_model: as of lightning.
        kwargs: further arguments of ``wandb.init``.

    Raises:
        ValueError: ``x_axis`` is none.
    """

    def __init__(
        self,
        save_dir: str | Path,
        project: str = "rlmodules",
        name: str | None = None,
        group: str | None = None,
        tags: Mapping[str, str] | Sequence[str] = (),
        offline: bool | None = None,
        x_axis: str = "step",
        id: str | None = None,
        log_model: bool | str = False,
        **kwargs: Any,
    ) -> None:
        if x_axis not in AXES:
            raise ValueError(f"logger.wandb.x_axis={x_axis!r} must be one of {list(AXES)}")
        if offline is None:
            offline = os.environ.get("WANDB_MODE", "offline") in ("offline", "dryrun")
            mode = os.environ.get("WANDB_MODE", "offline")
        else:
            mode = "offline" if offline else "online"
        super().__init__(
            name=name,
            save_dir=str(save_dir),
            project=project,
            offline=offline,
            id=id,
            log_model=log_model,
            group=group,
            tags=list(tags.values() if isinstance(tags, Mapping) else tags or ()),
            mode=mode,
            reinit="create_new",  # the process may have had, or have, others
            **kwargs,
        )
        self.x_axis = x_axis
        self.settings: dict[str, Any] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``wandb.Run``, begun when it is first asked for."""
        if self._experiment is None:
            import wandb

            folder = Path(str(self.save_dir))
            known = self._id or id_of(folder, "wandb") or new_id()
            folder.mkdir(parents=True, exist_ok=True)
            run = wandb.init(**self._wandb_init | {"id": known})
            note(folder, wandb=known)
            for axis in AXES:
                run.define_metric(axis, hidden=axis != "step")
            run.define_metric("*", step_metric=self.x_axis)
            run.config.update(self.settings, allow_val_change=True)
            self._experiment, self._id = run, known
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The settings, for when the run begins: a run that is refused before leaves none."""
        self.settings = dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log({"step": step or 0, **metrics})

    @rank_zero_only
    def log_rows(
        self, name: str, rows: Sequence[Mapping[str, Any]], axes: Mapping[str, float]
    ) -> None:
        """Log a table."""
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self.experiment.log({name: table, **axes})

    @rank_zero_only
    def end(self, how: str) -> None:
        """End the run, so that the next of this process is another."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if how == DONE else 1)
            self._experiment = None
