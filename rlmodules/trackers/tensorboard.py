"""TensorBoard: curves over any axis, samples as text, settings once, runs by their result."""

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rlmodules.resuming.changes import flatten
from rlmodules.trackers.rows import AXES, Once

HP_METRIC = "hp_metric"
TOLD = ("algo.", "seed", "optimized_metric")
"""Settings of the HPARAMS tab, besides those that were swept; all others are text."""
BEHIND_S = 5.0


class TensorBoard(TensorBoardLogger):
    """``lightning``'s, for runs that are compared, swept and gone on with.

    Args:
        save_dir: the folder of the event files.
        x_axis: what curves are drawn over, of which TensorBoard knows one: ``step`` (the
            optimizer's), ``iteration``, ``episodes``, ``examples`` or ``tokens``.
        swept: settings that stand first in the HPARAMS tab, by their options.

    Raises:
        ValueError: ``x_axis`` is none; with the first row: the run does not count it.
    """

    def __init__(
        self, save_dir: str | Path, x_axis: str = "step", swept: Sequence[str] = (), **kwargs: Any
    ) -> None:
        if x_axis not in AXES or x_axis == "epoch":  # which is no whole number
            axes = [axis for axis in AXES if axis != "epoch"]
            raise ValueError(f"logger.tensorboard.x_axis={x_axis!r} must be one of {axes}")
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **kwargs)
        self.x_axis, self.swept = x_axis, tuple(swept or ())
        self._once, self._settings = Once(), {}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log_settings()
        x = self._x({"step": float(step or 0)} | dict(metrics))
        super().log_metrics(self._once.of(metrics, x), x)

    def _x(self, row: Mapping[str, float]) -> int:
        if self.x_axis not in row:
            counted = [axis for axis in AXES if axis in row and axis != "epoch"]
            raise ValueError(
                f"logger.tensorboard.x_axis={self.x_axis!r} is not counted by this run, which"
                f" counts {', '.join(counted)}"
            )
        return int(row[self.x_axis])

    @rank_zero_only
    def log_rows(
        self, name: str, rows: Sequence[Mapping[str, Any]], axes: Mapping[str, float]
    ) -> None:
        """Show a table of texts in the TEXT tab."""
        self.experiment.add_text(name, markdown(rows), self._x(axes))

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """The settings, for when the run begins: a run that is refused before leaves none."""
        self._settings = dict(params)

    def _log_settings(self) -> None:
        """Once: all as text, those that one searches among in the HPARAMS tab."""
        if not self._settings:
            return
        text = yaml.safe_dump(self._settings, sort_keys=False, allow_unicode=True)
        self.experiment.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()))
        told = dict(flatten(self._settings))
        self._settings = {}
        shown = {o: plain(v) for o, v in told.items() if o in self.swept or o.startswith(TOLD)}
        self._describe(shown)

    def _describe(self, shown: dict[str, Any]) -> None:
        """Settings and the metric's name, whose value comes at the end."""
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        experiment, *session = hparams(shown, {HP_METRIC: None})
        holder = experiment.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(holder.content)
        for info in content.experiment.hparam_infos:
            info.differs = info.name in self.swept  # these the tab shows first
        holder.content = content.SerializeToString()
        for summary in (experiment, *session):
            self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def go_on(self, over: Mapping[str, float]) -> None:
        """Take back what was written after what is over: it comes again. The settings are there."""
        self._settings = {}
        begin_after(Path(self.log_dir))
        self.experiment.close()  # the next file says from where on the earlier ones are void
        self.experiment.purge_step = self._x(over) + 1

    @rank_zero_only
    def conclude(self, value: float, step: int) -> None:
        """Give the HPARAMS tab the number that runs are compared by."""
        self.experiment.add_scalar(HP_METRIC, value, step)
        self.experiment.flush()

    @rank_zero_only
    def end(self, how: str) -> None:
        if self._experiment is not None:
            self._experiment.close()

    @rank_zero_only
    def save(self) -> None:
        """Have the file hold what was logged. (Settings are in it, and in ``config.yaml``.)"""
        self.experiment.flush()


def begin_after(folder: Path) -> None:
    """Wait until a new event file sorts behind those in ``folder``: TensorBoard reads by name.

    A name begins with the second in which its file was created; within one, hosts and counts
    decide (``10`` before ``9``), and rows that are void would be read as the newer ones.

    Warns:
        UserWarning: this machine's clock is more than `BEHIND_S` behind a file's name.
    """
    names = {file.name.split(".")[3]: file for file in folder.glob("events.out.tfevents.*")}
    files = {int(second): file for second, file in names.items() if second.isdecimal()}
    latest = max(files, default=0)
    behind = latest + 1 - time.time()
    if behind > BEHIND_S:
        warnings.warn(
            f"this machine's clock is {behind:.0f} s behind {files[latest]}:"
            " TensorBoard reads files in the order of their names, and will show rows twice that"
            " this run writes again; set the clock, or read metrics.csv (logger=csv)",
            stacklevel=2,
        )
    else:
        time.sleep(max(behind, 0))


def plain(value: Any) -> bool | int | float | str:
    """What the HPARAMS tab takes."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in which a cell's own bars and line ends are shown as signs."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    for sign in "\\|*_`[<":  # what Markdown would read as its own
        text = text.replace(sign, "&lt;" if sign == "<" else f"\\{sign}")
    text = text.replace("\n", " ⏎ ")
    return "".join(letter if letter.isprintable() else "·" for letter in text)
