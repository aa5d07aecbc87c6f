"""``task=evaluate``: judge a model on held-out data, instead of training it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback

from datamodules.atomic import write_text
from rlmodules.algorithms.base import AlgorithmModule
from rlmodules.callbacks import ExportModel
from rlmodules.callbacks.card import write_card
from rlmodules.callbacks.report import Report

FILE = "evaluation.json"
"""What a run's folder holds of it: the model, and its figures on held-out data."""


class Evaluation(NamedTuple):
    """Held-out figures, as text, and the one that the run was asked to return."""

    text: str
    value: float | None

    def __str__(self) -> str:
        return self.text


def evaluate(
    make_module: Callable[[], L.LightningModule],
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
) -> Evaluation:
    """Every ``val/`` metric of the module, which ``settings`` name; ``FILE`` has them too.

    Raises:
        ValueError: nothing is held out.
    """
    found = held_out_metrics(trainer, make_module(), data)
    if not found:
        raise ValueError("nothing is held out to evaluate on: see data.eval_size, data.eval_path")
    judged = settings["ckpt_path"] or settings["model"]["name"]
    if trainer.is_global_zero:
        told = {"model": str(judged), "metrics": found}
        write_text(Path(settings["paths"]["output_dir"]) / FILE, json.dumps(told, indent=1))
    lines = [f"{judged} on held-out data:"]
    lines += [f"  {name}  {value:.4f}" for name, value in found.items()]
    return Evaluation("\n".join(lines), found.get(settings["optimized_metric"]))


def judge_export(
    module: AlgorithmModule,
    data: L.LightningDataModule,
    trainer: L.Trainer,
    make_trainer: Callable[[], L.Trainer],
) -> None:
    """Measure the folder that a run wrote, if its numbers are rounded, and say so in the report.

    The folder is loaded as who gets it loads it; KL and DPO's rewards are against the reference of
    the run. Where it is not on the disk of every process, the report only says that it is rounded.

    Args:
        trainer: of the run.
        make_trainer: makes another one like it that logs nothing.
    """
    export, report = (_of_kind(trainer, kind) for kind in (ExportModel, Report))
    if export is None or report is None or not report.after:
        return
    if not trainer.strategy.broadcast(report.rounded):
        return
    if not trainer.strategy.reduce_boolean_decision(export.dirpath.is_dir(), all=True):
        return
    figures = held_out_metrics(make_trainer(), module.from_export(export.dirpath), data)
    if trainer.is_global_zero:
        report.add_exported(figures, trainer, module)
        write_card(module, export.dirpath, report, data)


def held_out_metrics(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule
) -> dict[str, float]:
    """Every ``val/`` metric of ``module``; none if nothing is held out."""
    found = trainer.validate(module, data, verbose=False)
    return {k: v for rows in found for k, v in rows.items() if k.startswith("val/")}


def _of_kind(trainer: L.Trainer, kind: type[Callback]) -> Any:
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)
