"""What there is to see in data before it is trained on: counts, what is suspicious, and samples.

``task=inspect`` shows all of it; before a training what is suspicious is said in a line each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens of one kind: ``prompt``, ``response``, ``environment`` or ``cut``."""

    kind: str
    ids: list[int]


@dataclass(frozen=True)
class Sample:
    """One or more texts that belong together, as they are trained on."""

    title: str
    sides: dict[str, list[Part]]
    """Name of a side (``chosen``) -> its parts."""


@dataclass
class Inspection:
    """Of everything that a run reads."""

    counts: dict[str, str] = field(default_factory=dict)
    """What was counted, in words -> how much there is of it."""
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Name of a part of the texts -> tokens of each."""
    findings: list[str] = field(default_factory=list)
    """What is suspicious, a sentence each."""
    samples: list[Sample] = field(default_factory=list)

    def suspect(self, number: int, of: int, what: str) -> None:
        """Note that ``number`` of ``of`` rows are ``what``, if any is."""
        if number:
            self.findings.append(f"{number} of {of} {what}")


def quantiles(lengths: Sequence[int]) -> list[int]:
    """Least, median, 90th and 99th in a hundred, most."""
    at = torch.tensor([0, 0.5, 0.9, 0.99, 1], dtype=torch.float64)
    values = torch.tensor(lengths, dtype=torch.float64)
    return [int(v) for v in torch.quantile(values, at, interpolation="nearest")]


def cut_at(whole: Sequence[int], kept: Sequence[int], *, left: bool, kind: str) -> list[Part]:
    """``whole`` in parts, of which those that are not in ``kept`` are ``cut``.

    Args:
        left: what was cut stood on the left, perhaps behind an opening token; else on the right,
            perhaps before an end token.
    """
    gone = len(whole) - len(kept)
    if gone <= 0:
        return parts((kind, list(kept)))
    edge = 1 if len(kept) > 1 and (whole[0] == kept[0] if left else whole[-1] == kept[-1]) else 0
    at = edge if left else len(kept) - edge
    rest = [list(whole[:at]), list(whole[at : at + gone]), list(whole[at + gone :])]
    return parts(*zip((kind, "cut", kind), rest, strict=True))


def parts(*given: tuple[str, list[int]]) -> list[Part]:
    """Those that hold a token."""
    return [Part(kind, ids) for kind, ids in given if ids]


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` of ``count`` rows, over the whole set; the first is always among them."""
    wanted = min(wanted, count)
    return sorted({i * count // wanted for i in range(wanted)})
