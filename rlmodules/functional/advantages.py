"""Masked statistics and Generalized Advantage Estimation.

Shapes: B episodes, A actions (tokens the policy sampled), left-aligned; ``mask_BA`` is True where
an action exists. Values under a False mask never reach a result, not even NaN or infinity.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the ranks of a distributed run."""


def _local(total: Tensor) -> Tensor:
    return total


def masked_mean(x: Tensor, mask: Tensor, *, reduce: Reduce = _local) -> Tensor:
    """Mean of ``x`` where ``mask`` is True, over all ranks; 0 where nothing is selected. Scalar."""
    total = x.masked_fill(~mask, 0.0).sum()
    sums = reduce(torch.stack([total, mask.sum().to(total.dtype)]))
    return sums[0] / sums[1].clamp(min=1)


def masked_var(x: Tensor, mask: Tensor, *, reduce: Reduce = _local) -> Tensor:
    """Population variance of ``x`` where ``mask`` is True, over all ranks. Scalar."""
    mean = masked_mean(x, mask, reduce=reduce)
    return masked_mean((x - mean) ** 2, mask, reduce=reduce)


def whiten(x: Tensor, mask: Tensor, *, reduce: Reduce = _local, eps: float = 1e-8) -> Tensor:
    """``(x - mean) / sqrt(var + eps)`` over the selected elements of all ranks; 0 elsewhere."""
    mean = masked_mean(x, mask, reduce=reduce)
    var = masked_var(x, mask, reduce=reduce)
    return ((x - mean) * torch.rsqrt(var + eps)).masked_fill(~mask, 0.0)


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce = _local
) -> Tensor:
    """``1 - Var[returns - values] / Var[returns]``: 1 is a perfect critic, 0 one that says nothing.

    NaN where the returns do not vary, for then there is nothing to explain.
    """
    variance = masked_var(returns, mask, reduce=reduce)
    residual = masked_var(returns - values, mask, reduce=reduce)
    # Equal returns leave a variance of mere rounding.
    rounding = 1e-12 * masked_mean(returns**2, mask, reduce=reduce)
    return torch.where(variance > rounding, 1 - residual / variance, torch.nan)


def gae(
    rewards_BA: Tensor, values_BA: Tensor, mask_BA: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized Advantage Estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    ``delta_t = r_t + gamma * V_{t+1} - V_t`` and ``A_t = delta_t + gamma * lam * A_{t+1}``, where
    the episode ends after its last action: there ``V_{t+1} = A_{t+1} = 0``.

    Args:
        rewards_BA: reward that followed each action.
        values_BA: V of the state in which each action was taken.
        mask_BA: the actions of an episode come first, then padding.

    Returns:
        Advantages and returns (``advantages + values``), both [B, A] and 0 under the mask.
    """
    rewards = rewards_BA.masked_fill(~mask_BA, 0.0)
    values = values_BA.masked_fill(~mask_BA, 0.0)
    advantages = torch.zeros_like(values)
    next_value = values.new_zeros(values.shape[0])
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Padding holds zeros throughout, so it hands zeros on to the last real action.
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values
