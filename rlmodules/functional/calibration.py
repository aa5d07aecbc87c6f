"""How good and how honest a preference model is: calibration and correlation.

Shapes: N held-out pairs; ``logits_N`` are log-odds that the chosen response is the better one, so a
model is right where they are positive. All is computed in float64, on the CPU.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def calibration_curve(logits_N: Tensor, bins: int = 10) -> list[tuple[float, float, int]]:
    """``(mean confidence, accuracy, pairs)`` of each bin of confidences in [0.5, 1] that has any.

    The confidence in the side that the model prefers is ``sigmoid(|logit|)``.
    """
    logits = logits_N.cpu().double()
    confidence = logits.abs().sigmoid()
    right = (logits > 0).double() + 0.5 * (logits == 0).double()
    which = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    curve = []
    for b in range(bins):
        inside = which == b
        if inside.any():
            mean = confidence[inside].mean().item(), right[inside].mean().item()
            curve.append((*mean, int(inside.sum())))
    return curve


def calibration_error(logits_N: Tensor, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3)."""
    curve = calibration_curve(logits_N, bins)
    return sum(count * abs(accuracy - mean) for mean, accuracy, count in curve) / len(logits_N)


def fit_temperature(logits_N: Tensor, low: float = 0.02, high: float = 50.0) -> float:
    """The temperature that scores should be divided by: it minimises ``-log sigmoid(logit / T)``.

    Where every pair is right, any smaller T is better, and the result is ``low``.
    """
    logits = logits_N.cpu().double()
    # Convex in 1/T, so a golden-section search over log T finds the only minimum.
    loss = lambda log_t: softplus(-logits / math.exp(log_t)).mean().item()  # noqa: E731
    ratio = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    for _ in range(60):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        a, b = (a, d) if loss(c) < loss(d) else (c, b)
    return math.exp((a + b) / 2)


def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation; 0 where one of them does not vary."""
    x, y = (values - values.mean() for values in (x.cpu().double(), y.cpu().double()))
    scale = x.norm() * y.norm()
    return (x @ y / scale).item() if scale > 0 else 0.0


def concordance(scores_N: Tensor, targets_N: Tensor) -> tuple[float, int]:
    """Share of the pairs with different targets that the scores order alike, and how many pairs.

    A tie of the scores is half right. NaN targets are left out.
    """
    scores, targets = scores_N.cpu().double(), targets_N.cpu().double()
    known = ~targets.isnan()
    scores, targets = scores[known], targets[known]
    i, j = torch.triu_indices(len(scores), len(scores), offset=1)
    order = (targets[i] - targets[j]).sign()
    agreement = (scores[i] - scores[j]).sign() * order
    count = int((order != 0).sum())
    right = (agreement > 0).sum() + 0.5 * ((agreement == 0) & (order != 0)).sum()
    return (right.item() / count if count else 0.5), count
