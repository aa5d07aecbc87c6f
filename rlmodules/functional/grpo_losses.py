"""Group-relative advantages, and the family of losses around GRPO.

Shapes: B episodes, A actions, left-aligned; ``mask_BA`` is True where an action exists. Groups (the
episodes of one prompt) stand in consecutive rows.
"""

import torch
from torch import Tensor

from rlmodules.functional.advantages import Reduce, _local, masked_mean, masked_var
from rlmodules.functional.kl import kl_estimate
from rlmodules.functional.policy_losses import Loss

BASELINES = ("group", "leave_one_out", "batch")
SCALES = ("group", "batch", "none")
GRPO_LOSSES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo")
READ_DELTA = ("grpo", "dr_grpo", "dapo", "bnpo", "luspo")
"""Losses whose ratios are clipped."""
LEVELS = ("token", "sequence")
LARGEST_LOG_RATIO = 80.0
"""exp of more is infinite in float32, and infinity times an advantage of 0 is NaN."""
EPS = 1e-4
"""Added to standard deviations, as in TRL."""


def group_advantages(
    rewards_B: Tensor,
    counts_B: Tensor,
    group_size: int,
    *,
    baseline: str = "group",
    scale: str = "group",
    reduce: Reduce = _local,
) -> Tensor:
    """``A_i = (r_i - baseline) / scale``, [B]; 0 for episodes that do not count.

    ``baseline``, the expected reward of a prompt:

    - ``group``: the mean of its group (GRPO, Shao et al. 2024, arXiv:2402.03300, §4.1.2);
    - ``leave_one_out``: the mean of the group's *other* episodes, so that it does not depend on
      ``r_i`` (RLOO, Ahmadian et al. 2024, arXiv:2402.14740, eq. 6);
    - ``batch``: the mean of all episodes (REINFORCE++, Hu 2025, arXiv:2501.03262).

    ``scale``: standard deviation of the group's rewards, of all rewards of the batch, or 1 (Dr.
    GRPO, Liu et al. 2025, arXiv:2503.20783). Deviations are those of a sample (n - 1) plus 1e-4,
    as in TRL.

    Args:
        counts_B: True where an episode counts: a failed one has no say in its group's mean.
        reduce: sums over processes.

    Raises:
        ValueError: an unknown name, or a batch that is no whole number of groups.
    """
    if baseline not in BASELINES or scale not in SCALES:
        raise ValueError(
            f"baseline={baseline!r}: use one of {BASELINES}; scale={scale!r}: one of {SCALES}"
        )
    if len(rewards_B) % group_size:
        raise ValueError(f"{len(rewards_B)} episodes are no whole number of groups of {group_size}")
    # In float64 the mean of equal float32 rewards is exact, and they have exactly no advantage.
    # On the CPU, for not every device has it.
    rewards = rewards_B.cpu().double().view(-1, group_size)
    counts = counts_B.cpu().view(-1, group_size)
    n = counts.sum(1, keepdim=True)
    kept = rewards.masked_fill(~counts, 0.0)
    mean = kept.sum(1, keepdim=True) / n.clamp(min=1)
    centred = (rewards - mean).masked_fill(~counts, 0.0)
    if baseline == "batch":
        advantages = rewards - masked_mean(rewards, counts, reduce=reduce)
    elif baseline == "leave_one_out":
        advantages = centred * n / (n - 1).clamp(min=1)
    else:
        advantages = centred
    if scale == "group":
        std = (centred.square().sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
        advantages = advantages / (std + EPS)
    elif scale == "batch":
        total = reduce(counts.sum().double())
        variance = masked_var(rewards, counts, reduce=reduce) * total / (total - 1).clamp(min=1)
        advantages = advantages / (variance.sqrt() + EPS)
    return advantages.masked_fill(~counts, 0.0).flatten().float().to(rewards_B.device)


def decoupled_advantages(
    parts_BK: Tensor,
    weights_K: Tensor,
    group_size: int,
    *,
    reduce: Reduce = _local,
) -> Tensor:
    """Advantages [B] of rewards that are sums of K parts, each normalized in its group by itself.

    The weighted sum of what ``group_advantages`` makes of each part, normalized over the batch
    (GDPO, Liu et al. 2026, arXiv:2601.05242, eq. 4 to 6; ``normalize_then_sum`` in TRL): a part
    that varies little counts as much as one that varies widely.

    Args:
        parts_BK: unweighted; NaN where a part does not apply. An episode to which none applies has
            the advantage 0.
        reduce: sums over processes.
    """
    applies = ~parts_BK.isnan()
    each = [
        group_advantages(part.nan_to_num(), there, group_size)
        for part, there in zip(parts_BK.T, applies.T, strict=True)
    ]
    total = torch.stack(each, 1).double() @ weights_K.double()
    counts, batch = applies.any(1), {"baseline": "batch", "scale": "batch"}
    return group_advantages(total, counts, group_size, reduce=reduce, **batch)


def grpo_loss(
    *,
    logprobs_BA: Tensor,
    old_logprobs_BA: Tensor,
    advantages_BA: Tensor,
    mask_BA: Tensor,
    num_actions: float,
    max_new_tokens: int,
    loss_type: str = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    importance_sampling_level: str = "token",
    ref_logprobs_BA: Tensor | None = None,
    beta: float = 0.0,
) -> Loss:
    """The clipped surrogate with the group's advantage in every token, to be minimised.

    ``w = exp(logprob - old_logprob)`` of a token, or with ``sequence`` the geometric mean of the
    response's (GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 7). A token's loss is
    ``-min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A) + beta * k3``, in whose first ``w`` is
    ``delta`` at most (INTELLECT-2, Prime Intellect 2025, arXiv:2505.07291). ``cispo``:
    ``-min(w, epsilon_high).detach() A logprob`` (MiniMax 2025, arXiv:2506.13585, eq. 4); ``sapo``:
    ``-4 / t sigmoid(t (w - 1)) A``, t by the sign of A (Qwen 2025, arXiv:2511.20347).

    ``loss_type`` says how tokens are averaged:

    - ``grpo``, ``sapo``: over each response, then over responses (arXiv:2402.03300, eq. 3);
    - ``bnpo``: over all tokens of this minibatch;
    - ``dapo``, ``cispo``: over all tokens of the optimizer step (Yu et al. 2025, arXiv:2503.14476);
    - ``dr_grpo``: the sum over responses, divided by their number and ``max_new_tokens``;
    - ``luspo``: the sum over each response, then the mean over responses (arXiv:2602.05261).

    Args:
        num_actions: the optimizer step's action count, for one rank and accumulated minibatch.
        epsilon_high: default: ``epsilon``; for ``cispo`` the largest weight itself.

    Metrics: ``clip_fraction``, ``ratio``, ``approx_kl`` (k3 of old against new), and with a
    reference ``kl`` (its k3 estimate); means over the tokens of this minibatch.
    """
    zeros = torch.zeros_like(logprobs_BA)
    advantages_BA = torch.where(mask_BA, advantages_BA, zeros)
    log_ratio = (logprobs_BA - old_logprobs_BA).clamp(max=LARGEST_LOG_RATIO)
    log_ratio = torch.where(mask_BA, log_ratio, zeros)
    by_token = importance_sampling_level == "token"
    weight = (log_ratio if by_token else _mean_over_responses(log_ratio, mask_BA)).exp()
    bounds = epsilon, epsilon if epsilon_high is None else epsilon_high, delta
    shape = loss_type, bounds, (sapo_temperature_pos, sapo_temperature_neg)
    logprobs = torch.where(mask_BA, logprobs_BA, zeros)
    per_token, is_clipped = _surrogate(weight, advantages_BA, logprobs, *shape)
    metrics = _ratio_metrics(weight, log_ratio, is_clipped, mask_BA)
    if ref_logprobs_BA is not None:
        held = torch.where(mask_BA, logprobs_BA, ref_logprobs_BA)
        divergence = kl_estimate(held, ref_logprobs_BA, "k3")
        per_token = per_token + beta * divergence
        metrics["kl"] = masked_mean(divergence.detach(), mask_BA)
    per_token = torch.where(mask_BA, per_token, zeros)
    return _average(per_token, mask_BA, loss_type, num_actions, max_new_tokens), metrics


def _mean_over_responses(log_ratio: Tensor, mask: Tensor) -> Tensor:
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    return (log_ratio.sum(1, keepdim=True) / lengths).expand_as(log_ratio)


def _surrogate(
    weight: Tensor,
    advantages: Tensor,
    logprobs: Tensor,
    loss_type: str,
    bounds: tuple[float, float, float | None],
    temperatures: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Loss of each token, and whether it is clipped.

    Args:
        bounds: epsilon, epsilon_high and delta.
        temperatures: of positive advantages, and of others.
    """
    low, high, delta = bounds
    if loss_type == "cispo":
        return -weight.clamp(max=high).detach() * advantages * logprobs, weight > high
    if loss_type == "sapo":
        t = torch.where(advantages > 0, *temperatures)
        softened = (t * (weight - 1)).sigmoid() * 4 / t  # of slope 1 where the weight is 1
        return -softened * advantages, torch.zeros_like(weight, dtype=torch.bool)
    unclipped = (weight if delta is None else weight.clamp(max=delta)) * advantages
    clipped = weight.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(unclipped, clipped), clipped < unclipped


@torch.no_grad()
def _ratio_metrics(
    weight: Tensor, log_ratio: Tensor, is_clipped: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    return {
        "clip_fraction": masked_mean(is_clipped.float(), mask),
        "ratio": masked_mean(weight, mask),
        "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
    }


def _average(
    per_token: Tensor, mask: Tensor, loss_type: str, num_actions: float, max_new_tokens: int
) -> Tensor:
    if loss_type == "luspo":
        return per_token.sum(1).mean()
    if loss_type in ("grpo", "sapo"):
        return (per_token.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if loss_type == "bnpo":
        return per_token.sum() / mask.sum().clamp(min=1)
    if loss_type == "dr_grpo":
        return per_token.sum() / (len(mask) * max_new_tokens)
    if loss_type in ("dapo", "cispo"):
        return per_token.sum() / (num_actions or 1.0)
    raise ValueError(f"loss_type={loss_type!r} is unknown: use one of {GRPO_LOSSES}")
