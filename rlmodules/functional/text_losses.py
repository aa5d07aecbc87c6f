"""Losses over demonstrated tokens.

Shapes: N tokens of this minibatch. Each loss is a sum over tokens divided by a count that the
caller gives: pass the count of the *whole optimizer step*, so that splitting a batch over
accumulation steps or processes changes nothing.
"""

import torch
from torch import Tensor

SFT_LOSSES = ("nll", "dft")


def sft_loss(
    *, logprobs_N: Tensor, is_top_N: Tensor, loss_type: str, num_tokens: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """``nll``: the negative log-likelihood of what was demonstrated, a mean over tokens. ``dft``:
    the same with each token weighted by its probability, which no gradient reaches (Wu et al.
    2025, arXiv:2508.05629, eq. 9), so that a token that the model finds unlikely does not outweigh
    all others.

    Args:
        logprobs_N: of the tokens under the policy, in nats.
        is_top_N: whether the policy holds no token likelier.
    """
    losses = -logprobs_N
    if loss_type == "dft":
        losses = losses * logprobs_N.detach().exp()
    with torch.no_grad():
        metrics = {"nll": -logprobs_N.mean(), "token_accuracy": is_top_N.float().mean()}
    return losses.sum() / num_tokens, metrics
