"""Losses over preference pairs: ORPO, Bradley-Terry, and regression on several objectives.

Shapes: B pairs of this minibatch; K objectives. Each loss is a sum over pairs (or tokens) divided
by a count that the caller gives: pass the count of the *whole optimizer step*, so that splitting a
batch over accumulation steps or processes changes nothing.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Loss = tuple[Tensor, dict[str, Tensor]]


def smoothed(logits: Tensor, smoothing: float) -> Tensor:
    """``-(1 - e) log sigmoid(x) - e log sigmoid(-x)`` (conservative DPO, Mitchell 2023)."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def orpo_loss(
    *,
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    chosen_lengths_B: Tensor,
    rejected_lengths_B: Tensor,
    chosen_text_logps_B: Tensor,
    beta: float,
    num_pairs: float,
    num_tokens: float,
) -> Loss:
    """Odds ratio preference optimization (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

    ``loss = NLL(chosen) - beta * mean log sigmoid(log odds(chosen) - log odds(rejected))`` with
    ``odds = p / (1 - p)`` and p the geometric mean of a response's token probabilities.

    Args:
        chosen_text_logps_B: log-probability of prompt and chosen response together, which the NLL
            is over, as in the authors' code.
        num_tokens: predicted tokens of those texts in the whole optimizer step.
    """
    chosen = (chosen_logps_B / chosen_lengths_B).clamp(max=-1e-6)  # p = 1 has no odds
    rejected = (rejected_logps_B / rejected_lengths_B).clamp(max=-1e-6)
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    ratio = logsigmoid(log_odds)
    nll = -chosen_text_logps_B.sum() / num_tokens
    loss = nll - beta * ratio.sum() / num_pairs
    metrics = {
        "nll": -chosen.mean(),
        "log_odds": log_odds.mean(),
        "logps_chosen": chosen_logps_B.mean(),
        "logps_rejected": rejected_logps_B.mean(),
    }
    metrics = {name: value.detach() for name, value in metrics.items()}
    return loss, metrics | pair_metrics(beta * chosen, beta * rejected)


def bradley_terry_loss(
    *,
    chosen_B: Tensor,
    rejected_B: Tensor,
    margin_B: Tensor | None = None,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    num_pairs: float,
) -> Loss:
    """``-log sigmoid(r_chosen - r_rejected - margin)`` (Bradley and Terry 1952; margin: Touvron et
    al. 2023, arXiv:2307.09288 §3.2.2), plus ``coefficient * (r_chosen + r_rejected)^2``, which
    centres rewards at zero (Eisenstein et al. 2023, arXiv:2312.09244). Finite at any difference.

    Args:
        label_smoothing: probability that a label is wrong.
    """
    difference = chosen_B - rejected_B
    logits = difference if margin_B is None else difference - margin_B
    losses = smoothed(logits, label_smoothing)
    if center_rewards_coefficient:
        losses = losses + center_rewards_coefficient * (chosen_B + rejected_B) ** 2
    return losses.sum() / num_pairs, pair_metrics(chosen_B, rejected_B)


def multi_objective_loss(
    *,
    rewards_BK: Tensor,
    targets_BK: Tensor,
    mask_BK: Tensor,
    num_rows: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Squared errors, the mean over the objectives that a row has, of which the mean over rows.

    What an objective counts for in a reward is no part of it: by a negative weight an error would
    be made larger, and one of 0 would never be learned.

    Args:
        mask_BK: True where a target exists; what stands elsewhere, NaN included, is not read.
        num_rows: rows with a target in the optimizer step.

    Returns:
        ``(loss, losses_K)``: the loss, and each objective's own mean over its targets here.
    """
    error = torch.where(mask_BK, rewards_BK - targets_BK, torch.zeros_like(rewards_BK))
    squared, mask = error**2, mask_BK.to(error)
    per_row_B = squared.sum(1) / mask.sum(1).clamp(min=1)
    return per_row_B.sum() / num_rows, squared.sum(0) / mask.sum(0).clamp(min=1)


@torch.no_grad()
def pair_metrics(chosen_B: Tensor, rejected_B: Tensor) -> dict[str, Tensor]:
    """Accuracy (a tie is half right), margin and mean rewards."""
    difference = chosen_B - rejected_B
    return {
        "accuracy": ((difference > 0).float() + 0.5 * (difference == 0).float()).mean(),
        "margin": difference.mean(),
        "reward_chosen": chosen_B.mean(),
        "reward_rejected": rejected_B.mean(),
    }


def _log1mexp(x: Tensor) -> Tensor:
    """``log(1 - exp(x))`` for x < 0, without cancellation (Mächler 2012)."""
    near_zero = x > -0.6931471805599453
    # Each branch sees only values it is safe for: NaN in the other would reach the gradient.
    return torch.where(
        near_zero,
        torch.log(-torch.expm1(torch.where(near_zero, x, -torch.ones_like(x)))),
        torch.log1p(-torch.exp(torch.where(near_zero, -torch.ones_like(x), x))),
    )
