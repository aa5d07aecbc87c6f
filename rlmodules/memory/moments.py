"""The moments of a run, each with what is alive then: sums and comparisons of sizes, no more."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

BASE = "process"


@dataclass(frozen=True)
class Moment:
    """A time of a run, and the bytes of each part that is alive then.

    Attributes:
        name: what happens.
        parts: bytes by part.
        size: the batch that it is about, in words.
    """

    name: str
    parts: Mapping[str, int]
    size: str = ""

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def peak_of(moments: Sequence[Moment]) -> Moment:
    """The moment that takes most."""
    return max(moments, key=lambda moment: moment.total)


def largest_that_fits(
    bytes_of: Callable[[int], int], room: int, *, now: int, unit: int, most: int
) -> int:
    """The largest multiple of ``unit``, up to ``most``, whose ``bytes_of`` are within ``room``.

    Memory grows almost in proportion to a batch, so the next guess is drawn through the two last.

    Args:
        bytes_of: grows with its argument.
        now: where to begin; a multiple of ``unit``.

    Returns:
        0 where one ``unit`` is too large.
    """
    fits, too_large = 0, most // unit + 1
    guess = max(now // unit, 1)
    sizes: dict[int, int] = {}
    while too_large - fits > 1:
        guess = min(max(guess, fits + 1), too_large - 1)
        sizes[guess] = bytes_of(guess * unit)
        if sizes[guess] <= room:
            fits = guess
        else:
            too_large = guess
        guess = _next(sizes, room, guess)
    return fits * unit


def _next(sizes: Mapping[int, int], room: int, last: int) -> int:
    """Where a line through the two sizes nearest to ``room`` meets it."""
    nearest = sorted(sizes, key=lambda n: abs(sizes[n] - room))[:2]
    if len(nearest) < 2 or sizes[nearest[0]] == sizes[nearest[1]]:
        return 2 * last
    a, b = nearest
    slope = (sizes[b] - sizes[a]) / (b - a)
    return int(a + (room - sizes[a]) / slope) if slope > 0 else 2 * last
