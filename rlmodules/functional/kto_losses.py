"""Losses over responses that are desirable or not.

Shapes: B responses of this minibatch. Each loss is a sum over them divided by a count that the
caller gives: pass the count of the *whole optimizer step*.
"""

import torch
from torch import Tensor

KTO_LOSSES = ("kto", "apo_zero_unpaired")


def kto_loss(
    *,
    logratios_B: Tensor,
    desirable_B: Tensor,
    reference_kl: Tensor,
    loss_type: str,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    num_examples: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 7 and 8).

    ``kto``: ``1 - sigmoid(beta (r - z))`` of a desirable response and ``1 - sigmoid(beta (z - r))``
    of another, with r its log-ratio of policy and reference and z their KL, which no gradient
    reaches. ``apo_zero_unpaired``: the same with z = 0 (D'Oosterlinck et al. 2024,
    arXiv:2408.06266).

    Args:
        logratios_B: summed over each response's tokens, in nats.
        desirable_B: bool.
        reference_kl: z, a mean over log-ratios of responses to other prompts; below 0 it counts
            as 0.

    Returns:
        The loss, and metrics: means over the desirable responses (``reward_chosen``), over the
        others (``reward_rejected``), and z.
    """
    anchor = reference_kl.detach().clamp(min=0)
    away = logratios_B - (anchor if loss_type == "kto" else 0.0)
    sign = torch.where(desirable_B, 1.0, -1.0)
    weight = torch.where(desirable_B, desirable_weight, undesirable_weight)
    losses = weight * (1 - torch.sigmoid(beta * sign * away))
    rewards = beta * logratios_B.detach()
    metrics = {
        "reward_chosen": _mean(rewards, desirable_B),
        "reward_rejected": _mean(rewards, ~desirable_B),
    }
    if loss_type == "kto":
        metrics["reference_kl"] = anchor
    return losses.sum() / num_examples, metrics


def _mean(values: Tensor, among: Tensor) -> Tensor:
    """The mean of some, 0 where there are none."""
    return (values * among).sum() / among.sum().clamp(min=1)
