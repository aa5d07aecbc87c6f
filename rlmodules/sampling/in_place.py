"""Rows whose past lies in tensors that do not grow: a step reads and writes the same places as the
one before, so that it can be recorded once and repeated (``ahead.py``).

Shapes: R rows, T columns, of which each row has read a part, V vocabulary, D head size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from rlmodules.sampling.kv_cache import RoomyLayer
from rlmodules.sampling.reading import Cached


class FixedLayer(DynamicLayer):
    """Keys and values [R, heads, T, D], of which a step writes column ``at`` ([1])."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, layer: RoomyLayer, columns: int, at: Tensor) -> None:
        super().__init__()
        self.at = at
        room = columns - layer.keys.shape[2]
        # Autocast leaves rotated keys float32 and rounds them, all of them, for each product.
        keys = layer.keys.to(layer.values.dtype)
        self.keys, self.values = (
            nn.functional.pad(states, (0, 0, 0, room)) for states in (keys, layer.values)
        )
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a column [R, heads, 1, D]; returns all columns, the unwritten ones included."""
        self.keys.index_copy_(2, self.at, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.at, value_states.to(self.values.dtype))
        return self.keys, self.values

    def grown(self, columns: int) -> RoomyLayer:
        """The first ``columns``, as a layer that grows again."""
        layer = RoomyLayer()
        layer.keys, layer.values = self.keys[:, :, :columns], self.values[:, :, :columns]
        layer.dtype, layer.device, layer.is_initialized = self.dtype, self.device, True
        return layer


class InPlace:
    """As ``Cached``, of which it takes what was read, for ``room`` more tokens a row.

    Args:
        rows: not to be used afterwards.
        left: how many tokens each row may still have; one that goes on behind them, for it has
            ended and others have not, stays at its last position.

    Raises:
        NotImplementedError: its cache holds more than plain keys and values.
    """

    def __init__(self, rows: Cached, room: int, left: Sequence[int]) -> None:
        if not can_be_fixed(rows.cache):
            raise NotImplementedError("its cache holds more than plain keys and values")
        self.model, device = rows.model, rows.attention.device
        read = rows.attention.shape[1]
        self.columns, self.read = read + room, read
        self.at = torch.tensor([read], device=device)
        self.positions = rows.positions.clone()
        self.last = self.positions + torch.tensor(left, device=device)[:, None]
        self.cache = rows.cache
        for i, layer in enumerate(self.cache.layers):  # of one alone there are two copies
            self.cache.layers[i] = FixedLayer(layer, self.columns, self.at)
        dtype = self.cache.layers[0].values.dtype
        hidden = nn.functional.pad(rows.attention == 0, (0, room), value=True)
        self.hidden = torch.zeros(hidden.shape, dtype=dtype, device=device)
        self.hidden.masked_fill_(hidden, float("-inf"))
        """[R, T], what is added to the scores of columns."""

    @property
    def room(self) -> int:
        """How many tokens more a row may have."""
        return self.columns - self.read

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token more of each row, [R]; returns the logits [R, V] of what follows.

        All that it changes are tensors: whoever repeats it otherwise counts on by ``note``.
        """
        self.hidden.index_fill_(1, self.at, 0.0)
        self.positions.add_(1).copy_(torch.minimum(self.positions, self.last))
        logits, _ = self.model.next_logits(
            tokens[:, None], self.hidden[:, None, None], self.positions, self.cache
        )
        self.at.add_(1)
        return logits

    def note(self, steps: int) -> None:
        """``steps`` more were done."""
        self.read += steps

    def released(self) -> Cached:
        """The rows as they go on with tensors that grow; these are not to be used afterwards."""
        self.cache.layers = [layer.grown(self.read) for layer in self.cache.layers]
        return Cached(self.model, self.cache, (self.hidden[:, : self.read] == 0).long())


def can_be_fixed(cache: Any) -> bool:
    """Whether all that it holds are keys and values of each token."""
    plain = type(cache).__module__ == Cache.__module__ and isinstance(cache, Cache)
    return plain and all(type(layer) is RoomyLayer for layer in cache.layers)
