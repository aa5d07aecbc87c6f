"""Attention within the segments of a packed row by flash attention, on cards that have it.

Each rest asks, and sees its group's prefix and itself: texts of variable lengths whose last token
asks for the last one seen, which is how the kernel lays a causal mask. Keys and values of a prefix
are repeated for its rests, queries and results are those of the row; no scores are ever held.

Shapes: N tokens of the row, K tokens seen altogether, P texts, D head size.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from rlmodules.models.segments import Segments, decoded

HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
AMPERE = (8, 0)
"""Compute capability from which on torch's kernel runs."""


@cache
def has_flash() -> bool:
    """Whether there is a card here that torch has the kernel for."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability() >= AMPERE


def flash_takes(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether the kernel computes heads [..., D] of this type and size."""
    size = query.shape[-1]
    fits = size == value.shape[-1] <= LARGEST_HEAD and size % 8 == 0
    return query.is_cuda and has_flash() and fits and query.dtype in HALF and softcap is None


@dataclass(frozen=True)
class Texts:
    """What asks and what it sees, text by text."""

    seen: Tensor
    """[K], places in the row."""
    asked_ends: Tensor
    """[P + 1] int32, 0 and where the tokens that ask end, text by text: they are the row's."""
    seen_ends: Tensor
    """[P + 1] int32, the same of ``seen``."""
    longest: tuple[int, int]
    """Tokens that ask, and that are seen, in the text that has most."""


@lru_cache(maxsize=4)  # all layers of a pass, and of the reference's, ask for the same
def texts_of(segments: Segments, device: torch.device) -> Texts:
    """A prefix and the first rest behind it are one text; each other rest sees the prefix too."""
    seen: list[int] = []
    asked_lengths, seen_lengths, offset = [], [], 0
    for prefix, first, *rests in segments:
        start = offset + prefix + first
        if start > offset:
            seen += range(offset, start)
            asked_lengths.append(prefix + first)
            seen_lengths.append(prefix + first)
        for rest in filter(None, rests):
            seen += [*range(offset, offset + prefix), *range(start, start + rest)]
            asked_lengths.append(rest)
            seen_lengths.append(prefix + rest)
            start += rest
        offset = start

    def ends(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).int().to(device)

    longest = max(asked_lengths), max(seen_lengths)
    return Texts(
        torch.tensor(seen, device=device), ends(asked_lengths), ends(seen_lengths), longest
    )


@torch.library.custom_op("rlmodules::flash_segments", mutates_args=())
def flash_segments(
    q: Tensor, k: Tensor, v: Tensor, segments: Tensor, scaling: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """[N, heads, D], [N, kv heads, D] twice -> [N, heads, D], and the log-sums of scores that the
    backward pass needs, [heads, N] in float32.

    Args:
        segments: ``encoded``.
    """
    texts = texts_of(decoded(segments), q.device)
    out, logsums = _forward(q, k[texts.seen], v[texts.seen], texts, scaling, window)
    return out.contiguous(), logsums


@torch.library.custom_op("rlmodules::flash_segments_backward", mutates_args=())
def _flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsums: Tensor,
    segments: Tensor,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``q``, ``k`` and ``v``."""
    texts = texts_of(decoded(segments), q.device)
    seen = k[texts.seen], v[texts.seen]
    grad_q, *grads = _backward(grad.contiguous(), q, *seen, out, logsums, texts, scaling, window)
    totals = []
    for part, x in zip(grads, (k, v), strict=True):
        # What many rests say of one token adds up: in bfloat16 the last would be rounded away.
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        totals.append(total.index_add_(0, texts.seen, part.float()).to(x.dtype))
    return grad_q, totals[0], totals[1]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, texts: Texts, scaling: float, window: int | None
) -> tuple[Tensor, Tensor]:
    out, logsums, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, texts.asked_ends, texts.seen_ends, *texts.longest, 0.0, window is None, False,
        scale=scaling, **_left(window),
    )  # fmt: skip
    return out, logsums


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsums: Tensor,
    texts: Texts,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, logsums, texts.asked_ends, texts.seen_ends, *texts.longest, 0.0,
        window is None, *no_dropout, scale=scaling, **_left(window),
    )  # fmt: skip


def _left(window: int | None) -> dict[str, int]:
    """How far a token sees, itself not counted."""
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}


@flash_segments.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *shape: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[1], len(q), dtype=torch.float32)


@_flash_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, segments, *ctx.shape = inputs
    ctx.save_for_backward(q, k, v, *output, segments)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple:
    return *_flash_backward(grad, *ctx.saved_tensors, *ctx.shape), None, None, None


flash_segments.register_autograd(_differentiate, setup_context=_keep)
