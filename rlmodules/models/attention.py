"""Attention within the segments of one packed row, registered with transformers.

A segment attends to its group's prefix and, causally, to itself. Scores exist for one segment at a
time and are computed again in the backward pass: kept, they would be the largest thing in memory.
Rows that are not packed go to the attention that the model had before, with the mask it had.

Ours, because no kernel on a CPU takes several rests behind one prefix: a dense mask would, at more
than twice the time, and rows of variable length (``flash_attn_varlen``) would repeat the prefix.

Shapes: N tokens of the row, D head size; Q tokens that ask, K tokens that answer.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

Segments = tuple[tuple[int, ...], ...]
"""For each group: length of its prefix, then the length of each rest."""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    unpacked: Callable[..., tuple[Tensor, Tensor | None]],
    segments: Segments | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface.

    Args:
        query: [1, heads, N, D]; key and value may have fewer heads (grouped-query attention).
        unpacked: the attention of rows that are not packed.
        segments: of a packed row.

    Returns:
        ``([1, N, heads, D], None)`` of a packed row; what ``unpacked`` gives of others.
    """
    if segments is None:
        return unpacked(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotated ones float32
    shape = (segments, scaling, options.get("softcap"), options.get("sliding_window"))
    with torch.autocast(query.device.type, enabled=False):
        out = _SegmentAttention.apply(query[0], key[0], value[0], shape)
    return out[None], None


def eager_attention(module: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """The plain attention of the module's own architecture, which no registry knows.

    Raises:
        NotImplementedError: the architecture has none.
    """
    for cls in type(module).__mro__:
        forward = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if forward is not None:
            return forward(module, *args, **options)
    raise NotImplementedError(f"{type(module).__name__} has no eager attention of its own")


def _pieces(segments: Segments) -> Iterator[tuple[slice, slice, slice]]:
    """``(asking, prefix, own)`` of each piece; an empty prefix where ``own`` holds it already.

    A prefix and the first rest after it are one causal piece.
    """
    offset = 0
    for prefix, first, *rests in segments:
        start = offset + prefix + first
        yield slice(offset, start), slice(0, 0), slice(offset, start)
        for rest in rests:
            own = slice(start, start + rest)
            if rest:
                yield own, slice(offset, offset + prefix), own
            start += rest
        offset = start


class _SegmentAttention(torch.autograd.Function):
    """[heads, N, D], [kv heads, N, D] twice -> [N, heads, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, shape: tuple) -> Tensor:
        heads, count, size = q.shape
        out = q.new_empty(count, heads, size)
        for asking, prefix, own in _pieces(shape[0]):
            weights, _ = _weights(_grouped(q[:, asking], k), _seen(k, prefix, own), shape)
            said = weights.to(v.dtype).flatten(1, 2) @ _seen(v, prefix, own)
            out[asking] = said.view(heads, -1, size).transpose(0, 1)
        ctx.save_for_backward(q, k, v)
        ctx.shape = shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        q, k, v = ctx.saved_tensors
        _, scaling, softcap, _ = ctx.shape
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for asking, prefix, own in _pieces(ctx.shape[0]):
            queries, keys = _grouped(q[:, asking], k), _seen(k, prefix, own)
            weights, capped = _weights(queries, keys, ctx.shape)
            said = _grouped(grad[asking].transpose(0, 1), k).flatten(1, 2)
            inner = (said @ _seen(v, prefix, own).transpose(1, 2)).float().view_as(weights)
            inner = torch._softmax_backward_data(inner, weights, -1, torch.float32)
            if capped is not None:
                inner.mul_(1 - (capped / softcap).square_())
            inner = inner.mul_(scaling).to(q.dtype).flatten(1, 2)
            weights = weights.to(v.dtype).flatten(1, 2)
            grad_q[:, asking] = (inner @ keys).view(len(q), -1, q.shape[2])
            _add(grad_k, inner.transpose(1, 2) @ queries.flatten(1, 2), prefix, own)
            _add(grad_v, weights.transpose(1, 2) @ said, prefix, own)
        return grad_q, grad_k, grad_v, None


def _weights(q: Tensor, k: Tensor, shape: tuple) -> tuple[Tensor, Tensor | None]:
    """Attention weights [kv heads, group, Q, K] in float32, and the capped scores, if any."""
    _, scaling, softcap, window = shape
    width, length = q.shape[2], k.shape[1]
    scores = (q.flatten(1, 2) @ k.transpose(1, 2)).float().mul_(scaling)
    scores = scores.view(*q.shape[:3], length)
    capped = None
    if softcap is not None:
        capped = scores.div_(softcap).tanh_().mul_(softcap)
        scores = capped.clone()
    every = torch.ones(width, length, dtype=torch.bool, device=q.device)
    hidden = every.triu(length - width + 1)
    if window is not None and window < length:
        hidden |= every.tril(length - width - window)
    return scores.masked_fill_(hidden, float("-inf")).softmax(-1), capped


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """[heads, Q, D] as [kv heads, group, Q, D]: the query heads that share a key head together."""
    return x.reshape(len(k), -1, *x.shape[1:])


def _seen(x: Tensor, prefix: slice, own: slice) -> Tensor:
    """Keys or values of a piece, [kv heads, K, D]."""
    if prefix.start == prefix.stop:
        return x[:, own]
    return torch.cat([x[:, prefix], x[:, own]], dim=1)


def _add(total: Tensor, part: Tensor, prefix: slice, own: slice) -> None:
    """The reverse of ``_seen``."""
    width = prefix.stop - prefix.start
    total[:, prefix] += part[:, :width]
    total[:, own] += part[:, width:]


# cuDNN's attention makes a plan for each new shape, which takes longer than what it plans (0.1 s on
# an H200), and each sampled token is a new shape. Flash and memory-efficient attention need none.
torch.backends.cuda.enable_cudnn_sdp(False)

PACKED = {"eager": "rlmodules_packed_eager", "sdpa": "rlmodules_packed_sdpa"}
"""Attention of a model -> name of the same with packed rows besides, in transformers' registry."""

for _name, _unpacked, _mask in (
    (PACKED["eager"], eager_attention, eager_mask),
    (PACKED["sdpa"], sdpa_attention_forward, sdpa_mask),
):
    AttentionInterface.register(_name, partial(segment_attention, unpacked=_unpacked))
    AttentionMaskInterface.register(_name, _mask)
