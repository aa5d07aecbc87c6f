"""KL divergence of the policy from the reference: estimators, exact value, adaptive coefficient.

The estimators follow Schulman, "Approximating KL Divergence" (2020), for tokens sampled from the
policy. They estimate a *value*, as a penalty inside the reward needs; the gradient of their mean is
not the gradient of the KL (that of k1 is zero in expectation), so they are not losses.
"""

import torch
from torch import Tensor

KL_ESTIMATORS = ("k1", "k2", "k3")
LARGEST_ERROR = 0.2
"""The controller's proportional error is clipped to this (Ziegler et al. 2019)."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of ``KL(policy || reference)`` in nats, in the shape of the inputs.

    With ``d = logprobs - ref_logprobs`` of tokens sampled from the policy:

    - ``k1 = d``: unbiased, can be negative;
    - ``k2 = d^2 / 2``: biased, never negative, low variance near zero;
    - ``k3 = exp(-d) - 1 + d``: unbiased and never negative.

    Raises:
        ValueError: the estimator is not one of k1, k2, k3.
    """
    d = logprobs - ref_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"kl_estimator={estimator!r} is unknown: use one of {KL_ESTIMATORS}")


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """``sum_v p(v) (log p(v) - log q(v))`` over the last dimension, in nats."""
    logp, logq = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp() * (logp - logq)).sum(-1)


def adapt_kl_coefficient(
    coefficient: float, kl: float, *, target: float, horizon: float, num_sequences: int
) -> float:
    """One step of the proportional controller of Ziegler et al. 2019 (arXiv:1909.08593, §2.2).

    ``e = clip(kl / target - 1, -0.2, 0.2)``; ``coefficient * (1 + e * num_sequences / horizon)``.

    Args:
        kl: measured KL, in the unit of ``target`` (here nats a token).
        horizon: sequences over which a constant full-scale error changes the coefficient by 20%.
        num_sequences: sequences that ``kl`` was measured on, over all ranks.

    Raises:
        ValueError: ``num_sequences`` is 5 horizons or more, so that the step would not be positive.
    """
    if LARGEST_ERROR * num_sequences >= horizon:
        raise ValueError(
            f"{num_sequences} episodes at once are too many for kl_horizon={horizon}: a step of the"
            f" KL coefficient could take all of it; raise kl_horizon above"
            f" {LARGEST_ERROR * num_sequences:g}"
        )
    error = min(max(kl / target - 1.0, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1.0 + error * num_sequences / horizon)
