"""Kernels of products in half precision, which a CPU's library makes for each of their shapes.

oneDNN keeps those that it made last, as many as 1,024 of them: with avx512_bf16 two thirds of a MiB
each. A run meets new shapes with each batch of another number of tokens, and in attention with each
token that it writes.
"""

import os
from collections.abc import Collection, Mapping

import torch

from rlmodules.memory.machine import resident

KEPT = int(os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", 1024))
SAMPLES = 24
"""Of each kind, by which they are measured."""


class Kernels:
    """How many shapes a run's products have, at most.

    Attributes:
        counts: of them by their factors' dimensions: 2, or 3 where several are multiplied at once.
    """

    def __init__(self) -> None:
        self.counts = {2: 0, 3: 0}

    def add(
        self, products: Collection[tuple[torch.Size, ...]], batches: int, tokens: int = 1
    ) -> None:
        """Those of a pass, which ``batches`` of different sizes are computed by.

        Args:
            tokens: that are written in it, each over a longer text than the one before.
        """
        for shapes in products:
            is_attention_of_one = len(shapes[0]) == 3 and shapes[0][1] == 1
            self.counts[len(shapes[0])] += batches * (tokens if is_attention_of_one else 1)

    def bytes(self, each: Mapping[int, float]) -> int:
        """What is kept of them, if a kernel takes ``each``, by dimensions."""
        share = min(KEPT / max(sum(self.counts.values()), 1), 1.0)
        return int(sum(share * count * each[dims] for dims, count in self.counts.items()))


def measured(dtype: torch.dtype | None) -> dict[int, float]:
    """Bytes of a kernel of a product in ``dtype``, by dimensions, as this process makes them.

    Args:
        dtype: None where nothing is computed in half precision.
    """
    found = {2: 0.0, 3: 0.0}
    if dtype is None:
        return found
    for dims in (2, 3):
        _multiply(SAMPLES + 1, dims, dtype)  # what the first product takes once
        before = resident("VmRSS")
        for rows in range(1, SAMPLES + 1):
            _multiply(rows, dims, dtype)
        found[dims] = max(resident("VmRSS") - before, 0) / SAMPLES
    return found


def _multiply(rows: int, dims: int, dtype: torch.dtype) -> None:
    """A product of a shape that hardly anything else has."""
    batch = (3,) * (dims - 2)
    one, other = ((*batch, 20 + rows, 47), (*batch, 47, 61))
    torch.matmul(torch.zeros(one, dtype=dtype), torch.zeros(other, dtype=dtype))
