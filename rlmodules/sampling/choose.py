"""Drawing tokens: how a row of logits becomes one, as ``SamplingParams`` say.

The log-probabilities are those of ``softmax(logits / temperature)``, the distribution that ratios
and KL are computed of; top-k, top-p and ids that no text can hold narrow the choice below that, and
``kept_mass`` says by how much.

Shapes: B rows, V vocabulary, K candidates.
"""

import torch
from torch import Tensor

from datamodules.types import SamplingParams

CANDIDATES = 256
"""The nucleus is looked for among this many tokens first; rows it does not fit sort everything."""


def choose(
    logits_BV: Tensor,
    uniform_B: Tensor,
    params: SamplingParams,
    absent: Tensor | None = None,
    *,
    at_once: bool = False,
) -> tuple[Tensor, ...]:
    """Draw a token a row by inverting the cumulative distribution at ``uniform_B`` in [0, 1).

    Top-k is applied first, then top-p to what it left (as in transformers).

    Args:
        absent: ids that are never drawn; their mass is cut like that below top-k.
        at_once: sort every row rather than ask which ones need it, for which a processor would
            have to wait for the device.

    Returns:
        ``(tokens_B, logprobs_B, kept_mass_B)``.
    """
    if params.temperature == 0:
        log_z = logits_BV.logsumexp(-1)
        drawable = logits_BV
        if absent is not None:
            drawable = logits_BV.index_fill(1, absent, float("-inf"))
        best, tokens = drawable.max(-1)
        return tokens, best - log_z, (best - log_z).exp()
    logits = logits_BV / params.temperature
    if params.top_p == 1 and not 0 < params.top_k < logits.shape[1]:
        return _from_all(logits, uniform_B, absent)
    log_z = logits.logsumexp(-1, keepdim=True)
    mass = torch.ones_like(log_z)
    if absent is not None:
        mass = 1 - (logits[:, absent] - log_z).exp().sum(-1, keepdim=True)
        logits.index_fill_(1, absent, float("-inf"))
    vocabulary = logits.shape[1]
    width = min(vocabulary, params.top_k or (vocabulary if at_once else CANDIDATES))
    tokens, kept = _from_nucleus(logits, log_z, mass, uniform_B, width, params)
    if not params.top_k and width < vocabulary:
        # Exact: a nucleus wider than the candidates is found by sorting that row's vocabulary.
        wide = (kept < 0).nonzero().squeeze(1)
        if len(wide):
            tokens[wide], kept[wide] = _from_nucleus(
                logits[wide], log_z[wide], mass[wide], uniform_B[wide], vocabulary, params
            )
    logprobs = (logits.gather(1, tokens[:, None]) - log_z).squeeze(1)
    return tokens, logprobs, kept


def _from_all(
    logits: Tensor, uniform: Tensor, absent: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``choose``, of the whole vocabulary; ``logits`` are overwritten: each copy of them takes
    as long as what is computed of it."""
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    left_out = torch.zeros_like(uniform) if absent is None else weights[:, absent].sum(-1)
    if absent is not None:
        weights.index_fill_(1, absent, 0.0)
    cumulative = weights.cumsum(-1)
    drawable = cumulative[:, -1].clone()
    tokens = _invert(cumulative, uniform)
    total = drawable + left_out
    logprobs = weights.gather(1, tokens[:, None]).squeeze(1).log() - total.log()
    return tokens, logprobs, drawable / total


def _from_nucleus(
    logits: Tensor, log_z: Tensor, mass: Tensor, uniform: Tensor, width: int, params: SamplingParams
) -> tuple[Tensor, Tensor]:
    """Tokens and kept mass, from the ``width`` likeliest; kept is -1 where that is too few.

    Args:
        mass: [B, 1], of all that may be drawn.
    """
    top, order = logits.topk(width)
    probs = (top - log_z).exp_()
    total = probs.sum(-1, keepdim=True) if params.top_k else mass
    before = probs.cumsum(-1) - probs
    inside = before < params.top_p * total  # the token that crosses the threshold is in
    probs = probs * inside
    tokens = order.gather(1, _invert(probs.cumsum(-1), uniform)[:, None]).squeeze(1)
    kept = probs.sum(-1)
    if not params.top_k and width < logits.shape[1]:
        kept = torch.where(inside[:, -1], -1.0, kept)
    return tokens, kept


def _invert(cumulative: Tensor, uniform: Tensor) -> Tensor:
    """Index at which ``cumulative`` [B, K] passes ``uniform`` [B] times its last."""
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    # Rounding may leave u * total on the total itself: the first index that reaches it is real.
    return torch.minimum(index, torch.searchsorted(cumulative, total)).squeeze(1)


def stream(seed: int, count: int) -> Tensor:
    """``count`` uniform numbers in [0, 1); the low 32 bits of the seed count."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float32)
