"""An algorithm's optimizer and schedule, of its config and of the parameters that it trains."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

from rlmodules.models.pages import keep_pages
from rlmodules.optimizers.building import make_optimizer
from rlmodules.optimizers.masters import HALF
from rlmodules.optimizers.muon import matrices
from rlmodules.optimizers.schedule import make_schedule, planned_steps


def configure(module: Any) -> OptimizerLRSchedulerConfig | torch.optim.Optimizer:
    """What Lightning asks an ``AlgorithmModule`` for.

    Raises:
        ValueError: the optimizer cannot train these weights.
    """
    c, trainer, groups = module.config, module.trainer, module.parameter_groups()
    _refuse_loss_scale(trainer, groups)
    if trainer.strategy.root_device.type == "cpu":
        keep_pages()
    optimizer = make_optimizer(c.optimizer, groups, matrices(module.base_model))
    if c.lr_scheduler_type == "constant" and not module.needs_schedule:
        return optimizer
    # Not trainer.estimated_stepping_batches: it makes the train loader before a checkpoint is
    # read, and Lightning then never gives the loader its place in the epoch back.
    total = planned_steps(trainer, len(trainer.datamodule.train_dataloader()))
    schedule = make_schedule(optimizer, c, module.warmup_steps(total), total)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _refuse_loss_scale(trainer: Any, groups: list[dict[str, Any]]) -> None:
    """
    Raises:
        ValueError: the loss is scaled, and the gradients are too coarse to be scaled back.
    """
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    if scaled and any(p.dtype in HALF for group in groups for p in group["params"]):
        raise ValueError(
            f"trainer.precision={trainer.precision!r} scales the loss, which takes weights in"
            " float32: leave model.dtype at auto"
        )


def require_same_optimizer(checkpoint: Mapping[str, Any], config: Any) -> None:
    """
    Raises:
        ValueError: the checkpoint holds the state of another optimizer than ``config`` names.
    """
    settings = checkpoint.get("hyper_parameters", {}).get("config", {})
    made_by = settings.get("optimizer", {}).get("name", "adamw")  # the only one once
    if made_by != config.optimizer.name:
        raise ValueError(
            f"the checkpoint holds the state of algo.optimizer.name={made_by}, of which"
            f" {config.optimizer.name} cannot make anything: go on with optimizer={made_by}, or"
            " start a new run from the exported model (model.name=FOLDER)"
        )
