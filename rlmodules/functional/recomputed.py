"""Log-probabilities of chosen tokens whose logits are computed again in the backward pass, chunk by
chunk: where probabilities would take too much, or a soft cap bends the logits.

Shapes: N chosen positions, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor


def _softmax_parts(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits less their row's maximum, their exponentials, the maximum, the exponentials' sum.

    Each pass over [n, V] counts: on a CPU they cost as much as the matrix product.
    """
    scale, softcap, temperature = shape
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    if softcap is not None:
        logits.mul_(scale / softcap).tanh_().mul_(softcap / temperature)
    elif scale != temperature:
        logits.mul_(scale / temperature)
    top = logits.amax(-1, keepdim=True)
    shifted = logits.sub_(top)
    exps = shifted.exp()
    return shifted, exps, top, exps.sum(-1, keepdim=True)


class RecomputedLogprobs(torch.autograd.Function):
    """``d logp(y) / d logits = onehot(y) - p``; ``d entropy / d logits = -p (log p + entropy)``."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        shape: tuple,
        wanted: tuple[bool, bool],
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with_entropy, entropy_grad = wanted
        logprobs = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        entropy, is_top = torch.zeros_like(logprobs), torch.empty_like(logprobs, dtype=torch.bool)
        parts = None
        for start in range(0, len(tokens), rows):
            chunk = slice(start, start + rows)
            parts = shifted, exps, _, total = _softmax_parts(hidden[chunk], weight, bias, shape)
            log_total = total.squeeze(1).log()
            chosen = shifted.gather(1, tokens[chunk, None]).squeeze(1)
            logprobs[chunk], is_top[chunk] = chosen - log_total, chosen == 0
            if with_entropy:
                entropy[chunk] = log_total - torch.linalg.vecdot(exps, shifted) / total.squeeze(1)
        one_chunk = len(tokens) <= rows and any(ctx.needs_input_grad)
        kept = parts if one_chunk and parts is not None else ()
        ctx.save_for_backward(hidden, weight, bias, tokens, entropy, *kept)
        ctx.shape, ctx.rows, ctx.entropy_grad = shape, rows, entropy_grad
        ctx.mark_non_differentiable(is_top, *(() if entropy_grad else (entropy,)))
        return logprobs, entropy, is_top

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor, _: Any) -> tuple:
        hidden, weight, bias, tokens, entropy, *kept = ctx.saved_tensors
        scale, softcap, temperature = ctx.shape
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = grad_bias = None
        # Through temperature and scale; a soft cap's own slope comes below.
        slope = scale / temperature
        grad_logprobs, grad_entropy = grad_logprobs * slope, grad_entropy * slope
        for start in range(0, len(tokens), ctx.rows):
            chunk = slice(start, start + ctx.rows)
            parts = kept or _softmax_parts(hidden[chunk], weight, bias, ctx.shape)
            shifted, exps, top, total = parts
            gain = grad_logprobs[chunk, None]
            if ctx.entropy_grad:
                # -p (gain + grad_H (log p + H)), as exps * (offset + factor * shifted)
                factor = -grad_entropy[chunk, None] / total
                offset = factor * (entropy[chunk, None] - total.log()) - gain / total
                grad = torch.addcmul(offset, shifted, factor).mul_(exps)
            else:
                grad = exps * (-gain / total)
            grad.scatter_add_(1, tokens[chunk, None], gain)
            if softcap is not None:
                capped = (shifted + top).mul_(temperature / softcap)
                grad.mul_(1 - capped.square_())
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
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
