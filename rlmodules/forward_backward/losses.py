"""The losses that ``forward_backward`` knows by name.

Loss and metrics are means over the tokens that count; ``GradientWindow`` weighs several passes.

Shapes: N tokens that count.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlmodules.forward_backward.tokens import PaddedBatch
from rlmodules.functional import importance_sampling_loss, ppo_loss
from rlmodules.functional.policy_losses import Loss
from rlmodules.models import TokenScores

PER_TOKEN = (
    "old_logprobs",
    "old_log_probs",
    "advantages",
    "values",
    "old_values",
    "returns",
)
"""Arguments that are tensors beside ``input_ids``; the others are numbers."""


def cross_entropy(scores: TokenScores) -> Loss:
    """``-mean logprob``: ordinary language modelling."""
    loss = -scores.logprobs.mean()
    return loss, {"perplexity": loss.detach().exp()}


def importance_sampling(scores: TokenScores, *, old_logprobs: Tensor, advantages: Tensor) -> Loss:
    """``-mean exp(logprob - old_logprob) * advantage``: corrects for the policy having moved."""
    return importance_sampling_loss(
        logprobs_BA=scores.logprobs[None],
        old_logprobs_BA=old_logprobs[None],
        advantages_BA=advantages[None],
        **_all_count(scores),
    )


def ppo(
    scores: TokenScores,
    *,
    old_log_probs: Tensor,
    advantages: Tensor,
    returns: Tensor | None = None,
    values: Tensor | None = None,
    old_values: Tensor | None = None,
    clip_ratio: float = 0.2,
    value_clip: float = 0.2,
    value_coef: float = 0.5,
    entropy_coef: float = 0.0,
) -> Loss:
    """PPO's clipped surrogate, with ``returns`` also the critic's clipped error (arXiv:1707.06347).

    The critic is the value head of a ``PPOModel``; ``old_values``, which ``values`` is another name
    of, are its predictions when the episodes were sampled, and bound how far it may move.

    Raises:
        ValueError: ``returns`` without old values or without a critic, or the reverse.
    """
    old_values = values if old_values is None else old_values
    if (returns is None) != (old_values is None):
        raise ValueError("loss_fn='ppo' takes returns together with old_values (or values)")
    if returns is not None and scores.values is None:
        raise ValueError("loss_fn='ppo' with returns trains a critic: the model must be a PPOModel")
    row = lambda x: None if x is None else x[None]  # noqa: E731
    return ppo_loss(
        logprobs_BA=row(scores.logprobs),
        old_logprobs_BA=row(old_log_probs),
        advantages_BA=row(advantages),
        clip_ratio=clip_ratio,
        entropy_BA=row(scores.entropy),
        entropy_coef=entropy_coef,
        values_BA=row(scores.values),
        old_values_BA=row(old_values),
        returns_BA=row(returns),
        value_clip=value_clip,
        value_coef=value_coef,
        **_all_count(scores),
    )


def _all_count(scores: TokenScores) -> dict[str, Any]:
    mask = torch.ones_like(scores.logprobs, dtype=torch.bool)[None]
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
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"loss_fn={loss_fn!r} takes no {unknown}; it takes {sorted(known)}")
    required = {name for name, parameter in known.items() if parameter.default is parameter.empty}
    if missing := sorted(required - given.keys()):
        raise ValueError(f"loss_fn={loss_fn!r} needs {missing} beside input_ids")


def aligned(batch: PaddedBatch, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``arguments`` with those of each token as [N]."""
    return {
        name: batch.aligned(name, value) if name in PER_TOKEN and value is not None else value
        for name, value in arguments.items()
    }
