"""Attention within the segments of one packed row, registered with transformers.

A segment attends to its group's prefix and, causally, to itself. Segments of about one length are
computed together; their scores are computed again in the backward pass: kept, they would be the
largest thing in memory.
Rows that are not packed go to the attention that the model had before, with the mask it had.

Ours, because no kernel on a CPU takes several rests behind one prefix: a dense mask would, at more
than twice the time. On a card flash attention does, in half precision (``flash.py``).

Shapes: N tokens of the row, D head size; P pieces, of which each has Q tokens that ask and K that
are seen.
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from rlmodules.models.flash import flash_segments, flash_takes
from rlmodules.models.segments import Pieces, decoded, plan


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    unpacked: Callable[..., tuple[Tensor, Tensor | None]],
    segments: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface.

    Args:
        query: [1, heads, N, D]; key and value may have fewer heads (grouped-query attention).
        unpacked: the attention of rows that are not packed.
        segments: of a packed row, ``encoded``.

    Returns:
        ``([1, N, heads, D], None)`` of a packed row; what ``unpacked`` gives of others.
    """
    if segments is None:
        return unpacked(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves rotated ones float32
    softcap, window = options.get("softcap"), options.get("sliding_window")
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]
    if flash_takes(query, value, softcap):
        return flash_segments(*rows, segments, scaling, window)[0][None], None
    return _attend(*rows, segments, scaling, softcap, window)[None], None


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The plain attention of the module's own architecture, which no registry knows.

    Where a text is being written, one token a row asks. Then it is computed here, with the rounding
    that packed rows have: the plain one copies all that was said before for each head that shares
    it, and SDPA, which is as fast, rounds otherwise than what the policy is trained with.

    Args:
        query: [R, heads, Q, D]; key and value [R, kv heads, T, D].
        attention_mask: [R, 1, Q, T], what is added to scores.

    Raises:
        NotImplementedError: the architecture has none.
    """
    special = [options.get(name) for name in ("softcap", "position_bias")]
    of_all_heads = attention_mask is None or attention_mask.shape[1] == 1
    one = query.shape[2] == 1 and special == [None, None] and of_all_heads
    if one and _is_plain(type(module).__module__):
        return _attention_of_one(query, key, value, attention_mask, options.get("scaling")), None
    for cls in type(module).__mro__:
        forward = getattr(sys.modules[cls.__module__], "eager_attention_forward", None)
        if forward is not None:
            return forward(module, query, key, value, attention_mask, **options)
    raise NotImplementedError(f"{type(module).__name__} has no eager attention of its own")


@cache
def _is_plain(module: str) -> bool:
    """Whether the attention of a module of Python is a softmax of scaled scores and nothing else:
    the models that it defines take SDPA."""
    defined = [one for one in vars(sys.modules[module]).values() if isinstance(one, type)]
    own = [one for one in defined if issubclass(one, PreTrainedModel) and one.__module__ == module]
    return bool(own) and all(getattr(one, "_supports_sdpa", False) for one in own)


def _attention_of_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """[R, heads, 1, D], [R, kv heads, T, D] twice, [R, 1, 1, T] -> [R, 1, heads, D]."""
    rows, heads, _, size = query.shape
    kv_heads, width = key.shape[1:3]
    scaling = size**-0.5 if scaling is None else scaling
    queries = query.reshape(rows * kv_heads, -1, size)
    keys, values = key.flatten(0, 1), value.flatten(0, 1)  # of other sizes in some architectures
    scores = torch.bmm(queries, keys.transpose(1, 2)).view(rows, kv_heads, -1, width)
    added = scores.new_zeros(1, dtype=torch.float32) if mask is None else mask.float()
    weights = torch.add(added, scores, alpha=scaling).softmax(-1).to(value.dtype)
    return torch.bmm(weights.view(*queries.shape[:2], width), values).view(rows, 1, heads, -1)


@torch.library.custom_op("rlmodules::segment_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """[N, heads, D], [N, kv heads, D], [N, kv heads, E] -> [N, heads, E]; one operator, which a
    compiler takes as it is. (Latent attention has values of another size than keys.)"""
    out = q.new_empty(*q.shape[:2], v.shape[2])
    with torch.autocast(q.device.type, enabled=False):
        for pieces in plan(decoded(segments), window, q.device):
            queries, keys = _asking(q, k.shape[1], pieces), _seen(k, pieces)
            weights, _ = _weights(queries, keys, pieces, scaling, softcap)
            said = weights.to(v.dtype) @ _seen(v, pieces)
            out[pieces.asking[pieces.real]] = _back(said, q.shape[1], pieces)[pieces.real]
    return out


@torch.library.custom_op("rlmodules::segment_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``q``, ``k`` and ``v``; weights are computed again."""
    heads, kv_heads = q.shape[1], k.shape[1]
    grad_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    # What many pieces say of one token adds up: in bfloat16 the last of them would be rounded away.
    grad_k, grad_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
    with torch.autocast(q.device.type, enabled=False):
        for pieces in plan(decoded(segments), window, q.device):
            queries, keys = _asking(q, kv_heads, pieces), _seen(k, pieces)
            weights, capped = _weights(queries, keys, pieces, scaling, softcap)
            said = _asking(grad, kv_heads, pieces, only_real=True)
            inner = (said @ _seen(v, pieces).transpose(1, 2)).float()
            inner = torch._softmax_backward_data(inner, weights, -1, torch.float32)
            if capped is not None and softcap is not None:
                inner.mul_(1 - (capped / softcap).square_())
            inner = inner.mul_(scaling).to(q.dtype)
            grad_q[pieces.asking[pieces.real]] = _back(inner @ keys, heads, pieces)[pieces.real]
            _add(grad_k, inner.transpose(1, 2) @ queries, pieces)
            _add(grad_v, weights.to(v.dtype).transpose(1, 2) @ said, pieces)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *shape: Any) -> Tensor:
    return q.new_empty(*q.shape[:2], v.shape[2])


@_attend_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *shape: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.shape = inputs[4:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return *_attend_backward(grad, *ctx.saved_tensors, *ctx.shape), None, None, None, None


_attend.register_autograd(_backward, setup_context=_keep)


def _weights(
    queries: Tensor, keys: Tensor, pieces: Pieces, scaling: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Attention weights [P * kv heads, group * Q, K] in float32, and the capped scores, if any."""
    scores = queries @ keys.transpose(1, 2)
    count, width, length = pieces.sizes
    shape = scores.shape
    scores, capped = scores.view(count, -1, width, length), None
    if softcap is not None:
        capped = scores.float().mul_(scaling / softcap).tanh_().mul_(softcap)
        scores, scaling = capped, 1.0
    scores = _hidden(scores, pieces, scaling)
    return scores.view(shape).softmax(-1), None if capped is None else capped.view(shape)


def _hidden(scores: Tensor, pieces: Pieces, scaling: float) -> Tensor:
    """``scores`` [P, heads, Q, K] scaled, hidden where pieces may not look, and in float32."""
    masked = pieces.hidden.shape[3]
    before = scores.shape[3] - masked
    if not before:
        return torch.add(pieces.hidden, scores, alpha=scaling).float()
    found = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    none = pieces.hidden.new_zeros(1)  # of one dimension, so that what is added up is in float32
    torch.add(none, scores[..., :before], alpha=scaling, out=found[..., :before])
    torch.add(pieces.hidden, scores[..., before:], alpha=scaling, out=found[..., before:])
    return found


def _asking(x: Tensor, kv_heads: int, pieces: Pieces, *, only_real: bool = False) -> Tensor:
    """[N, heads, D] as [P * kv heads, group * Q, D]: query heads that share a key head together.

    Args:
        only_real: 0 for padding.
    """
    count, width, _ = pieces.sizes
    found = x.index_select(0, pieces.asking)
    if only_real and len(pieces.real) < len(found):
        padding = torch.ones(len(found), dtype=torch.bool, device=x.device)
        padding[pieces.real] = False
        found[padding] = 0
    found = found.view(count, width, kv_heads, -1, x.shape[2]).permute(0, 2, 3, 1, 4)
    return found.reshape(count * kv_heads, -1, x.shape[2])


def _back(x: Tensor, heads: int, pieces: Pieces) -> Tensor:
    """The reverse of ``_asking``, [P * Q, heads, D]."""
    count, width, _ = pieces.sizes
    return x.view(count, heads, width, -1).transpose(1, 2).flatten(0, 1)


def _seen(x: Tensor, pieces: Pieces) -> Tensor:
    """Keys or values [N, kv heads, D] of the pieces, [P * kv heads, K, D]."""
    count, _, length = pieces.sizes
    found = x.index_select(0, pieces.seen).view(count, length, *x.shape[1:])
    return found.transpose(1, 2).flatten(0, 1)


def _add(total: Tensor, part: Tensor, pieces: Pieces) -> None:
    """The reverse of ``_seen``; what several rests say of their prefix adds up."""
    count, _, length = pieces.sizes
    part = part.view(count, -1, length, part.shape[2]).transpose(1, 2)
    total.index_add_(0, pieces.seen, part.reshape(-1, *total.shape[1:]).float())


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
