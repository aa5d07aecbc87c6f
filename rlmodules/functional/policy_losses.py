"""Policy-gradient losses over the sampled tokens.

Shapes: B episodes, A actions, left-aligned; ``mask_BA`` is True where an action exists. Each loss
returns ``(loss, metrics)``. The loss is a sum over the actions divided by ``num_actions``: pass the
action count of the *whole optimizer step* there (over accumulation and ranks), because a mean of
minibatch means would weight short responses more; the loss of a step without actions, all of whose
episodes failed, is 0. Metrics are means over this minibatch.
"""

from typing import Any

import torch
from torch import Tensor

from rlmodules.functional.advantages import masked_mean

Loss = tuple[Tensor, dict[str, Tensor]]


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum where ``mask`` is True; NaN elsewhere stays out of value and gradient alike."""
    return torch.where(mask, x, torch.zeros_like(x)).sum()


def clipped_surrogate_loss(
    *,
    logprobs_BA: Tensor,
    old_logprobs_BA: Tensor,
    advantages_BA: Tensor,
    mask_BA: Tensor,
    num_actions: float,
    clip_ratio: float,
) -> Loss:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), to be minimised.

    ``ratio = exp(logprob - old_logprob)``;
    ``loss = -sum min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A) / num_actions``.

    Metrics: ``clip_fraction``, the share of actions whose clipped term is the smaller one;
    ``approx_kl``, the k3 estimate of KL(old || new); ``ratio``, its mean.
    """
    log_ratio = torch.where(mask_BA, logprobs_BA - old_logprobs_BA, torch.zeros_like(logprobs_BA))
    ratio = log_ratio.exp()
    unclipped = ratio * advantages_BA
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages_BA
    loss = -masked_sum(torch.minimum(unclipped, clipped), mask_BA) / (num_actions or 1.0)
    with torch.no_grad():
        metrics = {
            "clip_fraction": masked_mean((clipped < unclipped).float(), mask_BA),
            "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask_BA),
            "ratio": masked_mean(ratio, mask_BA),
        }
    return loss, metrics


def importance_sampling_loss(
    *,
    logprobs_BA: Tensor,
    old_logprobs_BA: Tensor,
    advantages_BA: Tensor,
    mask_BA: Tensor,
    num_actions: float,
) -> Loss:
    """``-sum exp(logprob - old_logprob) A / num_actions``: the surrogate without a clip.

    (Schulman et al. 2017, arXiv:1707.06347, eq. 6.)

    Metrics: ``ratio``, its mean; ``approx_kl``, the k3 estimate of KL(old || new).
    """
    log_ratio = torch.where(mask_BA, logprobs_BA - old_logprobs_BA, torch.zeros_like(logprobs_BA))
    ratio = log_ratio.exp()
    loss = -masked_sum(ratio * advantages_BA, mask_BA) / (num_actions or 1.0)
    with torch.no_grad():
        metrics = {
            "ratio": masked_mean(ratio, mask_BA),
            "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask_BA),
        }
    return loss, metrics


def clipped_value_loss(
    *,
    values_BA: Tensor,
    old_values_BA: Tensor,
    returns_BA: Tensor,
    mask_BA: Tensor,
    num_actions: float,
    value_clip: float,
) -> Loss:
    """Squared error of the critic, clipped to a trust region around its old prediction.

    ``loss = sum 1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2) / num_actions``
    (the form of OpenAI's baselines, kept by Ziegler et al. 2019).

    Metrics: ``value_clip_fraction``, the share of actions for which the clipped error is larger.
    """
    # NaN under the mask must go before the square: its gradient would be NaN times 0.
    values_BA = torch.where(mask_BA, values_BA, torch.zeros_like(values_BA))
    clipped = old_values_BA + (values_BA - old_values_BA).clamp(-value_clip, value_clip)
    error, clipped_error = (values_BA - returns_BA) ** 2, (clipped - returns_BA) ** 2
    loss = 0.5 * masked_sum(torch.maximum(error, clipped_error), mask_BA) / (num_actions or 1.0)
    with torch.no_grad():
        fraction = masked_mean((clipped_error > error).float(), mask_BA)
    return loss, {"value_clip_fraction": fraction}


def ppo_loss(
    *,
    logprobs_BA: Tensor,
    old_logprobs_BA: Tensor,
    advantages_BA: Tensor,
    mask_BA: Tensor,
    num_actions: float,
    clip_ratio: float,
    entropy_BA: Tensor | None = None,
    entropy_coef: float = 0.0,
    values_BA: Tensor | None = None,
    old_values_BA: Tensor | None = None,
    returns_BA: Tensor | None = None,
    value_clip: float = 0.2,
    value_coef: float = 0.5,
) -> Loss:
    """``policy_loss + value_coef * value_loss - entropy_coef * entropy`` (arXiv:1707.06347, eq. 9).

    Args:
        entropy_BA: None leaves the bonus out.
        values_BA: None leaves the critic out, and its old values and returns with it.

    Metrics: those of the parts, ``policy_loss`` and ``value_loss``.
    """
    shared: Any = {"mask_BA": mask_BA, "num_actions": num_actions}
    loss, metrics = clipped_surrogate_loss(
        logprobs_BA=logprobs_BA,
        old_logprobs_BA=old_logprobs_BA,
        advantages_BA=advantages_BA,
        clip_ratio=clip_ratio,
        **shared,
    )
    metrics["policy_loss"] = loss.detach()
    if values_BA is not None:
        assert old_values_BA is not None and returns_BA is not None
        value_loss, value_metrics = clipped_value_loss(
            values_BA=values_BA,
            old_values_BA=old_values_BA,
            returns_BA=returns_BA,
            value_clip=value_clip,
            **shared,
        )
        loss = loss + value_coef * value_loss
        metrics |= value_metrics | {"value_loss": value_loss.detach()}
    if entropy_BA is not None:
        bonus, entropy_metrics = entropy_bonus(entropy_BA=entropy_BA, **shared)
        loss = loss + entropy_coef * bonus
        metrics |= entropy_metrics
    return loss, metrics


def entropy_bonus(*, entropy_BA: Tensor, mask_BA: Tensor, num_actions: float) -> Loss:
    """``-sum entropy / num_actions``: minimising it keeps the policy exploring.

    Metrics: ``entropy``, the mean in nats a token.
    """
    loss = -masked_sum(entropy_BA, mask_BA) / (num_actions or 1.0)
    with torch.no_grad():
        return loss, {"entropy": masked_mean(entropy_BA, mask_BA)}
