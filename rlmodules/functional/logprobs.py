"""Log-probability and entropy of chosen tokens, straight from hidden states.

A language model's largest tensor is its [tokens, vocabulary] logits. Here they exist in float32
only for one chunk of rows at a time, in the forward pass and in the backward pass, and never for
positions that nobody asked about. The backward pass needs nothing of them but the probabilities:
those are kept in the weights' own type while they are few, and then it is two matrix products, and
for an entropy that is trained on a pass more. Otherwise a single chunk keeps its logits (its size
is bounded anyway), and several are computed again.

Shapes: N chosen positions, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlmodules.functional.recomputed import RecomputedLogprobs

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Size that one chunk of float32 logits may have: 64 MiB are 341 rows of a 49k vocabulary; a GPU
needs more rows to be busy."""
KEPT_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Most that probabilities may take from the forward to the backward pass: 256 MiB are 2,730 bf16
rows of a 49k vocabulary."""
CACHED_CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 2**28}
"""As ``CHUNK_BYTES``, in the weights' own type, where nothing but probabilities is kept: below 32
MiB the C allocator gives the same pages again, and a fresh page costs more than what is done on
it."""
BLOCK_BYTES = {"cpu": 6 * 2**20, "cuda": 2**29}
"""Of a chunk, float32 logits that are worked on together: the passes over them find them in the
caches of a CPU."""


@dataclass(frozen=True)
class Projection:
    """How a model turns hidden states into logits: ``cap(scale * (h @ weight.T + bias))``.

    ``softcap`` c, where set, is ``cap(x) = c * tanh(x / c)`` (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] = torch.nn.functional.linear
    """What ``logits`` multiplies with."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., V] of ``hidden`` [..., H]."""
        hidden = hidden.to(self.weight.dtype)
        logits = self.product(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def in_autocast(self, device: str) -> "Projection":
        """With weights of autocast's type where that is on, as ``nn.Linear`` would multiply;
        autocast does not look inside an autograd.Function."""
        if not torch.is_autocast_enabled(device):
            return self
        dtype = torch.get_autocast_dtype(device)
        bias = None if self.bias is None else self.bias.to(dtype)
        return replace(self, weight=self.weight.to(dtype), bias=bias)

    def copied(self) -> "Projection":
        """With weights of its own, which no gradient reaches."""
        bias = None if self.bias is None else self.bias.detach().clone()
        return replace(self, weight=self.weight.detach().clone(), bias=bias)


class TokenStats(NamedTuple):
    """What a distribution says of a token that was chosen, for N of them."""

    logprobs: Tensor
    """[N], of the token, in nats; float32."""
    entropy: Tensor | None
    """[N], of the distribution, in nats; float32."""
    is_top: Tensor
    """[N], whether no token was likelier; bool."""


def token_logprobs(
    hidden_NH: Tensor,
    projection: Projection,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = True,
    entropy_grad: bool = True,
    chunk_bytes: int | None = None,
) -> TokenStats:
    """Log-probability of ``tokens_N`` and entropy of ``softmax(logits / temperature)``, in nats.

    Args:
        hidden_NH: hidden state that predicts each token, contiguous (a 3-D slice is slow on CPUs).
        with_entropy: False saves a pass over the logits and returns None for the entropy.
        entropy_grad: whether the entropy is trained on; False saves a pass in the backward pass.
        chunk_bytes: size of a chunk of float32 logits; default: ``CHUNK_BYTES``.

    Returns:
        Log-probabilities and entropies are differentiable in hidden states, weight and bias.
    """
    device = hidden_NH.device.type
    projection = projection.in_autocast(device)
    weight, bias = projection.weight, projection.bias
    kept_bytes = len(tokens_N) * weight.shape[0] * weight.element_size()
    keep = projection.softcap is None and kept_bytes <= size_of(KEPT_BYTES, device)
    wanted = (with_entropy, with_entropy and entropy_grad)
    chunk_bytes = chunk_bytes or size_of(CACHED_CHUNK_BYTES if keep else CHUNK_BYTES, device)
    rows = max(1, chunk_bytes // ((weight.element_size() if keep else 4) * weight.shape[0]))
    with torch.autocast(device, enabled=False):
        inputs = (hidden_NH.to(weight.dtype), weight, bias, tokens_N)
        if keep:
            slope = projection.scale / temperature
            block = max(1, min(rows, size_of(BLOCK_BYTES, device) // (4 * weight.shape[0])))
            rows = rows // block * block
            logprobs, entropy, is_top = _KeptLogprobs.apply(*inputs, slope, wanted, (rows, block))
        else:
            shape = (projection.scale, projection.softcap, temperature)
            logprobs, entropy, is_top = RecomputedLogprobs.apply(*inputs, shape, wanted, rows)
    return TokenStats(logprobs, entropy if with_entropy else None, is_top)


def size_of(sizes: dict[str, int], device: str) -> int:
    """Of one of the tables above, for a device of that kind."""
    return sizes.get(device, sizes["cuda"])


class _KeptLogprobs(torch.autograd.Function):
    """Keeps p, for ``d logits = onehot(y) g - p (g + g_H (log p + H))`` with the gradients g
    of the log-probability and g_H of the entropy H; without the latter, ``p - onehot(y)``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        slope: float,
        wanted: tuple[bool, bool],
        sizes: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        with_entropy, entropy_grad = wanted
        logprobs = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        entropy, is_top = torch.zeros_like(logprobs), torch.empty_like(logprobs, dtype=torch.bool)
        needed = any(ctx.needs_input_grad)
        kept = weight.new_empty(len(tokens), weight.shape[0]) if needed else None
        rows, block = sizes
        for start in range(0, len(tokens), block):
            if start % rows == 0:
                logits = torch.nn.functional.linear(hidden[start : start + rows], weight, bias)
            at = slice(start, min(start + block, len(tokens)))
            chosen = tokens[at, None]
            some = logits[start % rows : start % rows + block]
            logprobs[at], said, probs, is_top[at] = _chosen(some, chosen, slope, with_entropy)
            if said is not None:
                entropy[at] = said
            if kept is not None:
                if not entropy_grad:
                    probs.scatter_add_(1, chosen, -torch.ones_like(probs[:, :1]))
                kept[at] = probs
        ctx.save_for_backward(hidden, weight, kept, *((tokens, entropy) if entropy_grad else ()))
        ctx.slope, ctx.block = slope, block
        ctx.mark_non_differentiable(is_top, *(() if entropy_grad else (entropy,)))
        return logprobs, entropy, is_top

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_entropy: Tensor, _: Any) -> tuple:
        hidden, weight, kept = ctx.saved_tensors[:3]
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        gain = (-ctx.slope * grad)[:, None]
        errors = kept
        if ctx.saved_tensors[3:]:
            tokens, entropy = ctx.saved_tensors[3:]
            errors = _errors(kept, grad, grad_entropy, tokens, entropy, ctx.block)
            gain = torch.full_like(gain, -ctx.slope)
        # The gain scales rows, so it goes on the small side of each product.
        grad_hidden = ((errors @ weight) * gain).to(hidden.dtype) if need_hidden else None
        grad_weight = errors.T @ (hidden * gain).to(weight.dtype) if need_weight else None
        grad_bias = errors.T @ gain.squeeze(1).to(weight.dtype) if need_bias else None
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _chosen(
    logits: Tensor, chosen: Tensor, slope: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Of ``softmax(slope * logits)``: log-probabilities of what was chosen, entropies,
    probabilities, whether the chosen are the likeliest."""
    shifted = logits.float()
    if slope != 1.0:
        shifted.mul_(slope)
    shifted.sub_(shifted.amax(-1, keepdim=True))
    picked = shifted.gather(1, chosen).squeeze(1)
    exps = shifted.exp() if with_entropy else shifted.exp_()
    total = exps.sum(-1, keepdim=True)
    log_total, entropy = total.squeeze(1).log(), None
    if with_entropy:
        entropy = log_total - torch.linalg.vecdot(exps, shifted) / total.squeeze(1)
    return picked - log_total, entropy, exps.div_(total), picked == 0


def _errors(
    kept: Tensor, grad: Tensor, grad_entropy: Tensor, tokens: Tensor, entropy: Tensor, rows: int
) -> Tensor:
    """``p (g + g_H (log p + H)) - onehot(y) g`` of the probabilities p [N, V] that were kept."""
    errors = torch.empty_like(kept)
    tiny = torch.finfo(torch.float32).tiny
    for start in range(0, len(tokens), rows):
        chunk = slice(start, start + rows)
        p = kept[chunk].float()
        gain, factor = grad[chunk, None], grad_entropy[chunk, None]
        offset = torch.addcmul(gain, factor, entropy[chunk, None])
        error = torch.addcmul(offset, p.clamp(min=tiny).log_(), factor).mul_(p)
        errors[chunk] = error.scatter_add_(1, tokens[chunk, None], -gain)
    return errors
