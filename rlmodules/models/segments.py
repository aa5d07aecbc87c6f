"""Where the segments of a packed row are, and which pieces of attention are computed together.

Shapes: P pieces, of which each has Q tokens that ask and K that are seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ASKED_AT_ONCE = 256
"""Tokens of a longer piece that ask together: scores of all of it would be the largest thing there
is, and half of them would be hidden."""
MOST_SCORES = 2**18
"""Scores of a head that are computed together, if they are of several pieces."""
WASTE = 1.5
"""Scores with padding over those without, at most."""
Segments = tuple[tuple[int, ...], ...]
"""For each group: length of its prefix, then the length of each rest."""
Span = tuple[range, list[int]]
"""Places of the tokens that ask, and of those that they see; of the latter they are the last."""


def encoded(segments: Segments) -> Tensor:
    """``segments`` as layers are given them: for each group the count of its numbers, and them.

    A tensor, for a compiled layer is compiled anew for numbers of Python that it has not met.
    """
    return torch.tensor([number for group in segments for number in (len(group), *group)])


def decoded(encoding: Tensor) -> Segments:
    """The reverse of ``encoded``."""
    numbers = iter(encoding.tolist())
    return tuple(tuple(next(numbers) for _ in range(count)) for count in numbers)


@dataclass(frozen=True)
class Pieces:
    """Pieces of about one size, computed together; P of them, padded to Q asking and K seen tokens.

    A prefix and the first rest after it are one causal piece; each other rest sees the prefix, and
    itself causally. Long ones are several: each block asks, and sees all up to its end.
    """

    asking: Tensor
    """[P * Q], places in the row; where a piece has fewer, its last again."""
    seen: Tensor
    """[P * K], places in the row; where a piece has fewer, any."""
    real: Tensor
    """[n], which of the asking ones are none of padding."""
    hidden: Tensor
    """[P, 1, Q, W], minus infinity where an asking token may not look among the last W seen, else
    0; what is seen before them, all see."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """P, Q and K."""
        count, _, width, _ = self.hidden.shape
        return count, width, len(self.seen) // count


def _spans(segments: Segments, window: int | None) -> Iterator[Span]:
    """What asks and what it sees, piece by piece."""
    offset = 0
    for prefix, first, *rests in segments:
        start = offset + prefix + first
        yield from _blocks(range(0), range(offset, start), window)
        for rest in rests:
            own = range(start, start + rest)
            yield from _blocks(range(offset, offset + prefix), own, window)
            start += rest
        offset = start


def _blocks(prefix: range, own: range, window: int | None) -> Iterator[Span]:
    """``own`` asks, block by block, and sees ``prefix`` and itself up to what asks."""
    for start in range(0, len(own), ASKED_AT_ONCE):
        asking = own[start : start + ASKED_AT_ONCE]
        seen = [*prefix, *own[: start + len(asking)]]
        yield asking, seen if window is None else seen[-(len(asking) + window - 1) :]


@lru_cache(maxsize=4)  # all layers of a pass, and of the reference's, ask for the same
def plan(segments: Segments, window: int | None, device: torch.device) -> list[Pieces]:
    """The pieces of a row, those of about one size together while their scores are few."""
    planned: list[Pieces] = []
    some: list[Span] = []
    for span in sorted(_spans(segments, window), key=lambda span: (len(span[0]), len(span[1]))):
        if some and not _belong(some, span):
            planned.append(_together(some, window, device))
            some = []
        some.append(span)
    return [*planned, _together(some, window, device)] if some else planned


def _belong(some: list[Span], span: Span) -> bool:
    """Whether one more piece is computed with ``some`` at little padding."""
    sizes = [(len(asking), len(seen)) for asking, seen in [*some, span]]
    padded = len(sizes) * max(q for q, _ in sizes) * max(k for _, k in sizes)
    return padded <= MOST_SCORES and padded <= WASTE * sum(q * k for q, k in sizes)


def _together(spans: list[Span], window: int | None, device: torch.device) -> Pieces:
    width = max(len(asking) for asking, _ in spans)
    length = max(len(seen) for _, seen in spans)
    before = length - width if len(spans) == 1 and window is None else 0
    q, k = torch.arange(width)[:, None], torch.arange(before, length)
    asking: list[int] = []
    seen: list[int] = []
    real: list[int] = []
    hidden: list[Tensor] = []
    for place, (ask, at) in enumerate(spans):
        asking += [*ask] + [ask[-1]] * (width - len(ask))
        seen += at + [0] * (length - len(at))
        real += range(place * width, place * width + len(ask))
        last = q.clamp(max=len(ask) - 1) + len(at) - len(ask)  # what an asking token sees last
        hidden.append((k > last) if window is None else (k > last) | (k <= last - window))
    mask = torch.zeros(len(spans), 1, width, length - before, dtype=torch.float32)
    mask.masked_fill_(torch.stack(hidden)[:, None], float("-inf"))

    def on_device(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=device)

    return Pieces(on_device(asking), on_device(seen), on_device(real), mask.to(device))
