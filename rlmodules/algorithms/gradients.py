"""Gradients before an optimizer step: clipped by their norm, refused where they are no numbers."""

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class NonFiniteGradientError(RuntimeError):
    """The gradient holds NaN or infinity; no step was taken with it."""

    symptom = "lost_loss"
    """What the health check calls it."""


def clip_gradients(
    optimizer: torch.optim.Optimizer, max_norm: float, scaler: Any, where: str
) -> float | None:
    """Scale the gradients of all parameters down to ``max_norm`` together; returns what it was.

    Under a loss scale (``16-mixed``) gradients are divided by it first: Lightning leaves that to a
    fused optimizer's own step, and would have us clip the scaled ones.

    Args:
        scaler: of the loss; None where there is none.
        where: place in the run, for an error.

    Returns:
        The norm before; None where there is no gradient, or the scaler leaves this step out.

    Raises:
        NonFiniteGradientError: the norm is NaN or infinite; no step was taken.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [p for p in parameters if p.grad is not None]
    if not parameters:
        return None
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)
    total = nn.utils.get_total_norm([p.grad for p in parameters])
    if isinstance(total, DTensor):  # of shares of a gradient
        total = total.full_tensor()
    norm = total.item()  # once: the processor waits for the device here
    if not math.isfinite(norm):
        if scaler is not None:
            return None  # the scaler leaves this step out, and lowers its scale
        raise NonFiniteGradientError(
            f"the gradient norm is {norm} {where}; the weights are those before this step."
            " Lower algo.learning_rate, or use trainer.precision=32-true, and resume with"
            " ckpt_path=last"
        )
    if norm > torch.tensor(max_norm, dtype=total.dtype).item():  # as the device rounds it
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return norm
