"""The losses that ``forward_backward`` knows by name.

Loss and metrics are means over the tokens that count; ``GradientWindow`` weighs several passes.

Shapes: N tokens that count.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.forward_backward.tokens import Scored, Tokens
from rlmodules.functional import (
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy_bonus,
    importance_sampling_loss,
)
from rlmodules.functional.policy_losses import Loss

PER_TOKEN = (
    "old_logprobs",
    "old_log_probs",
    "advantages",
    "values",
    "old_values",
    "returns",
)
"""Arguments that are tensors beside ``input_ids``; the others are numbers."""


def cross_entropy(scored: Scored) -> Loss:
    """``-mean logprob``: ordinary language modelling."""
    loss = -scored.logprobs.mean()
    return loss, {"perplexity": loss.detach().exp()}


def importance_sampling(scored: Scored, *, old_logprobs: Tensor, advantages: Tensor) -> Loss:
    """``-mean exp(logprob - old_logprob) * advantage``: corrects for the policy having moved."""
    return importance_sampling_loss(
        logprobs_BA=scored.logprobs[None],
        old_logprobs_BA=old_logprobs[None],
        advantages_BA=advantages[None],
        **_all_count(scored),
    )


def ppo(
    scored: Scored,
    *,
    old_log_probs: Tensor,
    advantages: Tensor,
    returns: Tensor | None = None,
    values: Tensor | None = None,
    old_values: Tensor | None = None,
    value_head: nn.Module | None = None,
    clip_ratio: float = 0.2,
    value_clip: float = 0.2,
    value_coef: float = 0.5,
    entropy_coef: float = 0.0,
) -> Loss:
    """PPO's clipped surrogate, with ``returns`` also the critic's clipped error (arXiv:1707.06347).

    The critic is the value head of a ``PPOModel``; ``old_values``, which ``values`` is another name
    of, are its predictions when the episodes were sampled, and bound how far it may move.

    Raises:
        ValueError: ``returns`` without old values or without a value head, or the reverse.
    """
    old_values = values if old_values is None else old_values
    shared = _all_count(scored)
    loss, metrics = clipped_surrogate_loss(
        logprobs_BA=scored.logprobs[None],
        old_logprobs_BA=old_log_probs[None],
        advantages_BA=advantages[None],
        clip_ratio=clip_ratio,
        **shared,
    )
    metrics["policy_loss"] = loss.detach()
    if (returns is None) != (old_values is None):
        raise ValueError("loss_fn='ppo' takes returns together with old_values (or values)")
    if returns is not None:
        if value_head is None:
            raise ValueError(
                "loss_fn='ppo' with returns trains a critic: the model must be a PPOModel"
            )
        value_loss, value_metrics = clipped_value_loss(
            values_BA=value_head(scored.hidden)[None],
            old_values_BA=old_values[None],
            returns_BA=returns[None],
            value_clip=value_clip,
            **shared,
        )
        loss = loss + value_coef * value_loss
        metrics |= value_metrics | {"value_loss": value_loss.detach()}
    if entropy_coef:
        bonus, entropy_metrics = entropy_bonus(entropy_BA=scored.entropy[None], **shared)
        loss = loss + entropy_coef * bonus
        metrics |= entropy_metrics
    return loss, metrics


def _all_count(scored: Scored) -> dict[str, Any]:
    mask = torch.ones_like(scored.logprobs, dtype=torch.bool)[None]
    return {"mask_BA": mask, "num_actions": float(mask.numel())}


LOSSES: dict[str, Callable[..., Loss]] = {
    "cross_entropy": cross_entropy,
    "importance_sampling": importance_sampling,
    "ppo": ppo,
}


def check_arguments(loss_fn: str, given: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: there is no such loss, it lacks an argument, or has no such argument.
    """
    if loss_fn not in LOSSES:
        raise ValueError(
            f"loss_fn={loss_fn!r} is unknown: use one of {sorted(LOSSES)}, or"
            " forward_backward_custom with a function of your own"
        )
    known = {
        name: parameter
        for name, parameter in inspect.signature(LOSSES[loss_fn]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "value_head"
    }
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"loss_fn={loss_fn!r} takes no {unknown}; it takes {sorted(known)}")
    required = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    if missing := sorted(required - given.keys()):
        raise ValueError(f"loss_fn={loss_fn!r} needs {missing} beside input_ids")


def aligned(tokens: Tokens, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` with those of each token as [N]."""
    return {
        name: tokens.aligned(name, value) if name in PER_TOKEN and value is not None else value
        for name, value in arguments.items()
    }
