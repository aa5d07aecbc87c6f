"""What trackers are told while a run goes on: rows of numbers, and tables of texts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L

from rlmodules.trackers.identity import hand_back, take_over

AXES = ("step", "iteration", "epoch", "episodes", "examples", "tokens")
"""What curves are drawn over, in each row as far as a run has it."""
DONE, STOPPED, FAILED = "done", "stopped", "failed"
"""How a run ends; one that was stopped is to go on."""


class Once:
    """Axes of rows, each once a step: for trackers that keep every metric for itself."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def of(self, row: Mapping[str, float], step: int) -> dict[str, float]:
        """``row`` without the axes that its step has already."""
        if self._last.get("step") != step:
            self._last = {"step": float(step)}
        new = {n: v for n, v in row.items() if n not in AXES or n not in self._last}
        self._last |= {name: value for name, value in new.items() if name in AXES}
        return new


def write_row(trainer: L.Trainer, row: Mapping[str, float]) -> None:
    """Give every tracker ``row`` as of now, as far as it is finite: its step is the optimizer's,
    before all of them 0.

    It is written at once. (Lightning's own way keeps a row until the hooks of its batch are over,
    and loses it if a signal ends the run in one; and it counts steps from 0, so that what was there
    before training and what the first step did stand in one place.)
    """
    if not trainer.is_global_zero or trainer.sanity_checking:
        return
    there = {name: v for name, v in row.items() if math.isfinite(v) and name != "step"}
    for logger in trainer.loggers:
        logger.log_metrics(dict(there), step=trainer.global_step)
        logger.save()


def write_table(
    trainer: L.Trainer, pl_module: Any, name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Give ``rows`` of texts to every tracker that can show them, at the step of their metrics."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_rows"):
            axes = {"step": float(trainer.global_step)} | pl_module.axes()
            logger.log_rows(name, rows, axes)


def go_on(trainer: L.Trainer, step: int, axes: Mapping[str, float]) -> None:
    """Tell trackers that the run goes on after ``step``: rows that they have of later come again.

    Args:
        axes: what else was over then.
    """
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if hasattr(logger, "go_on"):
            logger.go_on({"step": step} | dict(axes))


def conclude(trainer: L.Trainer, value: float | None) -> None:
    """Tell trackers that compare runs by one number what the run's is."""
    for logger in trainer.loggers if trainer.is_global_zero and value is not None else []:
        if hasattr(logger, "conclude"):
            logger.conclude(value, trainer.global_step)


@contextmanager
def tracked(
    trainer: L.Trainer, settings: Mapping[str, Any], folder: Path, ckpt_path: Path | None
) -> Iterator[None]:
    """Have trackers begin a run, or go on with it, and end it however the block ends.

    Args:
        settings: all that the run was told, which each tracker gets once.
        folder: the run's.
        ckpt_path: what it goes on from.
    """
    if not trainer.is_global_zero:
        yield
        return
    how, loggers = DONE, list(trainer.loggers)
    try:
        take_over(ckpt_path, folder)
        for logger in loggers:
            logger.log_hyperparams(dict(settings))
        yield
    except BaseException as error:
        how = STOPPED if isinstance(error, SystemExit | KeyboardInterrupt) else FAILED
        if getattr(error, "is_complete", False):  # it was done before: nothing has gone on
            how = DONE
            hand_back(ckpt_path, folder)
        raise
    finally:
        for logger in loggers:
            if hasattr(logger, "end"):
                logger.end(how)
