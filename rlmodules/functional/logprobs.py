"""Log-probability and entropy of chosen tokens, straight from hidden states.

A language model's largest tensor is its [tokens, vocabulary] logits. Here they exist only for one
chunk of rows at a time, in the forward pass and in the backward pass, and never for positions that
nobody asked about. A single chunk keeps its logits for the backward pass (its size is bounded
anyway); several chunks are computed again there.

Shapes: N chosen positions, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 2**27
"""Size that one chunk of float32 logits may have: 128 MiB, 682 rows of a 49k vocabulary."""


@dataclass(frozen=True)
class Projection:
    """How a model turns hidden states into logits: ``cap(scale * (h @ weight.T + bias))``.

    ``softcap`` c, where set, is ``cap(x) = c * tanh(x / c)`` (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [..., V] of ``hidden`` [..., H]."""
        hidden = hidden.to(self.weight.dtype)
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias).float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def token_logprobs(
    hidden_NH: Tensor,
    projection: Projection,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of ``tokens_N`` and entropy of ``softmax(logits / temperature)``, in nats.

    Args:
        hidden_NH: hidden state that predicts each token, contiguous (a 3-D slice is slow on CPUs).
        with_entropy: False saves a pass over the logits and returns None for the entropy.

    Returns:
        ``(logprobs_N, entropy_N)`` in float32, differentiable in hidden states, weight and bias.
    """
    weight, bias = projection.weight, projection.bias
    device = hidden_NH.device.type
    if torch.is_autocast_enabled(device):  # autocast does not look inside an autograd.Function
        dtype = torch.get_autocast_dtype(device)
        hidden_NH, weight = hidden_NH.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    with torch.autocast(device, enabled=False):
        logprobs, entropy = _TokenLogprobs.apply(
            hidden_NH.to(weight.dtype),
            weight,
            bias,
            tokens_N,
            (projection.scale, projection.softcap, temperature),
            with_entropy,
            rows,
        )
    return logprobs, entropy if with_entropy else None


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple) -> Tensor:
    scale, softcap, temperature = shape
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    if softcap is None:
        factor = scale / temperature
        return logits if factor == 1.0 else logits.mul_(factor)
    return logits.mul_(scale / softcap).tanh_().mul_(softcap / temperature)


class _TokenLogprobs(torch.autograd.Function):
    """``d logp(y) / d logits = onehot(y) - p``; ``d entropy / d logits = -p (log p + entropy)``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        shape: tuple,
        with_entropy: bool,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        log_z, entropy = torch.empty_like(logprobs), torch.zeros_like(logprobs)
        logits = None
        for start in range(0, len(tokens), rows):
            chunk = slice(start, start + rows)
            logits = _scaled_logits(hidden[chunk], weight, bias, shape)
            log_z[chunk] = logits.logsumexp(-1)
            chosen = logits.gather(1, tokens[chunk, None]).squeeze(1)
            logprobs[chunk] = chosen - log_z[chunk]
            if with_entropy:
                probs = (logits - log_z[chunk, None]).exp_()
                # The sum of the probabilities is not exactly 1: with it, large logits cancel.
                total = log_z[chunk] * probs.sum(-1)
                entropy[chunk] = total - torch.linalg.vecdot(probs, logits)
        kept = logits if len(tokens) <= rows and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden, weight, bias, tokens, log_z, entropy, kept)
        ctx.shape, ctx.rows, ctx.with_entropy = shape, rows, with_entropy
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple:
        hidden, weight, bias, tokens, log_z, entropy, kept = ctx.saved_tensors
        scale, softcap, temperature = ctx.shape
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = grad_bias = None
        for start in range(0, len(tokens), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            logits = kept
            if logits is None:
                logits = _scaled_logits(hidden[chunk], weight, bias, ctx.shape)
            logp = logits - log_z[chunk, None]
            grad = logp.exp()
            if ctx.with_entropy:
                slope = grad_entropy[chunk, None]
                grad.mul_(
                    logp.add_(entropy[chunk, None]).mul_(slope).add_(grad_logprobs[chunk, None])
                )
            else:
                grad.mul_(grad_logprobs[chunk, None])
            grad.neg_().scatter_add_(1, tokens[chunk, None], grad_logprobs[chunk, None])
            if softcap is not None:
                grad.mul_(1 - (logits * (temperature / softcap)).square_())
            if scale != temperature:
                grad.mul_(scale / temperature)
            grad = grad.to(weight.dtype)
            if need_hidden:
                grad_hidden[chunk] = grad @ weight
            if need_weight:
                part = grad.T @ hidden[chunk]
                # Several chunks add up in float32: bf16 would swallow the small ones.
                grad_weight = part if len(tokens) <= ctx.rows else _add(grad_weight, part)
            if need_bias:
                grad_bias = _add(grad_bias, grad.sum(0))
        cast = lambda g: None if g is None else g.to(weight.dtype)  # noqa: E731
        return grad_hidden, cast(grad_weight), cast(grad_bias), None, None, None, None


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part.float() if total is None else total.add_(part)
