"""Weights of tokens that something else than the policy drew: truncated importance sampling.

Shapes: B episodes, A actions, left-aligned; ``mask_BA`` is True where an action exists.
"""

import math

import torch
from torch import Tensor

CORRECTIONS = ("none", "token", "sequence")


def sampler_weights(
    *,
    logprobs_BA: Tensor,
    drawn_logprobs_BA: Tensor,
    mask_BA: Tensor,
    level: str,
    cap: float,
) -> tuple[Tensor, Tensor]:
    """``min(w, cap)`` of every token, and where the cap cut it; 1 where there is no action.

    ``w = pi(token) / mu(token)``: ``pi`` is the policy as training scores it before its first
    update, ``mu`` what the token was drawn from. With ``sequence``, ``w`` is the product over the
    episode's actions: unbiased but for the cap, and of high variance; ``token`` leaves out what
    earlier tokens had (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy
    RL training"; TRL's ``token_truncate`` and ``sequence_truncate``).

    Args:
        level: one of ``CORRECTIONS`` but ``none``.
    """
    log_w = torch.where(mask_BA, logprobs_BA - drawn_logprobs_BA, torch.zeros_like(logprobs_BA))
    if level == "sequence":
        log_w = torch.where(mask_BA, log_w.sum(1, keepdim=True), torch.zeros_like(log_w))
    most = math.log(cap)
    ones = torch.ones_like(log_w)
    return torch.where(mask_BA, log_w.clamp(max=most).exp(), ones), mask_BA & (log_w > most)
