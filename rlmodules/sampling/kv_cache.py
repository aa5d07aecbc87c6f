"""A KV cache for decoding in batches that rows join and leave.

``DynamicLayer`` copies all keys and values to add a column; here a column is written into room that
was left for it. Other kinds of layers (sliding windows, for example) stay those of transformers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Columns that are added when there is no room left."""


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, T, D] at the front of tensors that are longer than T."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add columns [B, heads, new, D]; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        room = self._room
        # Whoever selected rows or cropped has put other tensors in our place.
        if room is None or self.keys.data_ptr() != room[0].data_ptr() or new > room[0].shape[-2]:
            room = self._room = (
                self._moved(self.keys, key_states, old, new),
                self._moved(self.values, value_states, old, new),
            )
        for whole, more in zip(room, (key_states, value_states), strict=True):
            whole[:, :, old:new] = more
        self.keys, self.values = room[0][:, :, :new], room[1][:, :, :new]
        return self.keys, self.values

    @staticmethod
    def _moved(had: Tensor, more: Tensor, old: int, new: int) -> Tensor:
        rows, heads, _, size = more.shape
        whole = more.new_empty(rows, heads, new + ROOM, size)
        if old:
            whole[:, :, :old] = had
        return whole

    def prepend(self, width: int) -> None:
        """Shift everything by ``width`` columns that no attention looks at."""
        self.keys, self.values = (
            nn.functional.pad(x, (0, 0, width, 0)) for x in (self.keys, self.values)
        )

    def append_rows(self, other: "RoomyLayer") -> None:
        """Add the rows of another layer of the same length."""
        self.keys = torch.cat([self.keys, other.keys])
        self.values = torch.cat([self.values, other.values])


def new_cache(model: Any) -> DynamicCache | None:
    """A cache of ``RoomyLayer``s; None for a model that needs one of its own kind."""
    cache = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def can_merge(cache: Cache | None) -> bool:
    """Whether ``merge`` can add rows to it."""
    return cache is not None and all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def merge(cache: Cache, joining: Cache) -> None:
    """Add the rows of ``joining``; the shorter of the two gets columns of padding on the left."""
    for layer, other in zip(cache.layers, joining.layers, strict=True):
        assert isinstance(layer, RoomyLayer) and isinstance(other, RoomyLayer)
        short = layer.get_seq_length() - other.get_seq_length()
        (other if short > 0 else layer).prepend(abs(short))
        layer.append_rows(other)
