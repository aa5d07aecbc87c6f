"""How many bytes an optimizer keeps for what it trains, and where; without torch."""

from typing import NamedTuple

SMALLEST_8BIT = 4096
"""Elements: bitsandbytes keeps the state of smaller tensors in float32."""
BLOCK = 256
"""Elements that share a scale in 8-bit state."""
CODES = 2 * 256 * 4
"""Bytes of the two tables of an 8-bit optimizer, once."""
CHUNK = 2**26
"""Gradient elements that are in float32 at a time, where the weights are not."""


class Held(NamedTuple):
    """Bytes of an optimizer's state."""

    device: int
    """Beside the weights."""
    host: int
    """In the machine's own memory; of weights on the CPU too."""


def state_bytes(name: str, numel: int, dtype: str = "float32", *, matrix: bool = False) -> Held:
    """What the optimizer ``name`` keeps for one trained tensor, from its first step on.

    Adam's two means and the count of steps, or Muon's momentum; and float32 copies of weights of
    another type or place.

    Args:
        numel: elements of the tensor.
        dtype: of the weights: float32, bfloat16, float16.
        matrix: whether Muon takes it: a 2-D weight of a layer, no embedding and no head.
    """
    kept = 8 * numel + 4
    if name == "adamw8bit" and numel >= SMALLEST_8BIT:
        kept = 2 * (numel + 4 * -(-numel // BLOCK))
    elif name == "adamw8bit":
        kept = 8 * numel  # its count is a plain number
    elif name == "muon" and matrix:
        kept = 4 * numel
    if name == "adamw_offload":
        return Held(0, kept + 4 * numel)
    return Held(kept + (0 if dtype == "float32" else 4 * numel), 0)


def step_bytes(name: str, numel: int, dtype: str = "float32") -> Held:
    """What a step takes besides, while it lasts: gradients in float32, in pieces.

    Args:
        numel: elements of all trained tensors.
    """
    gradients = 4 * min(numel, CHUNK)
    if name == "adamw_offload":
        return Held(0, gradients)
    return Held(0 if dtype == "float32" else gradients, 0)
