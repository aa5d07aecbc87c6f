"""The course of the learning rate over a run.

It follows the place in the run, not the updates that were taken: a step that a KL early stop or a
loss scale leaves out counts too, so that a run ends at the rate that it was planned to end at, and
one that goes on from a checkpoint knows its rate by its step alone.
"""

import math
from typing import Any

import lightning as L
import torch
from torch.optim.lr_scheduler import LambdaLR


def learning_rate_factor(step: int, warmup: int, total: int, schedule: str) -> float:
    """Share of the peak that step ``step`` of ``total`` (from 0) takes.

    As transformers' schedules of the same names, but no step is wasted at 0: the first of w warm-up
    steps takes 1 / (w + 1), and the last step of a linear decay 1 / (total - w).
    """
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if schedule == "linear":
        return max(1.0 - done, 0.0)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0))) if schedule == "cosine" else 1.0


def planned_steps(trainer: L.Trainer, num_batches: int) -> int:
    """Optimizer steps of the whole run.

    Args:
        num_batches: batches of an epoch, of which ``limit_train_batches`` may leave some out.

    Raises:
        ValueError: the limit leaves none, or cuts an optimizer step in two.
    """
    limit, window = trainer.limit_train_batches, trainer.accumulate_grad_batches
    share = isinstance(limit, float)
    kept = int(num_batches * limit) if share else min(num_batches, limit)
    if not kept or kept % window:
        raise ValueError(
            f"trainer.limit_train_batches={limit} keeps {kept} of {num_batches} batches, and an"
            f" optimizer step takes algo.gradient_accumulation_steps={window}: keep a multiple"
        )
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    total = min(epochs * (kept // window), steps)
    return int(total) if math.isfinite(total) else 1  # no end is known: a constant schedule's run


def make_schedule(
    optimizer: torch.optim.Optimizer, config: Any, warmup: int, total: int
) -> LambdaLR:
    """The schedule that ``config.lr_scheduler_type`` names, whenever it is asked.

    Args:
        warmup, total: steps, as of ``learning_rate_factor``.
    """
    return LambdaLR(
        optimizer,
        lambda step: learning_rate_factor(step, warmup, total, config.lr_scheduler_type),
    )


def last_rate(trainer: L.Trainer) -> float:
    """The learning rate of the optimizer step before this moment, of the first group."""
    for entry in trainer.lr_scheduler_configs:
        if isinstance(entry.scheduler, LambdaLR):  # which is set for the next step already
            peak, factor = entry.scheduler.base_lrs[0], entry.scheduler.lr_lambdas[0]
            return float(peak * factor(max(entry.scheduler.last_epoch - 1, 0)))
    return float(trainer.optimizers[0].param_groups[0]["lr"])
