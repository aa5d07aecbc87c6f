"""What a model remembers of the texts it has read, for batches that rows join, leave and repeat.

transformers' caches hold a layer's past as keys and values, as recurrent states, or as both. Rows
are picked by ``reorder_cache``, the one call that every kind of layer has, and joined here. A plain
layer of keys and values copies all of them to add a column; ``RoomyLayer`` writes it into room that
was left.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, cache_utils
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

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

    @classmethod
    def of(cls, layer: DynamicLayer) -> "RoomyLayer":
        """A plain layer's content, with room."""
        roomy = cls()
        vars(roomy).update(vars(layer))
        return roomy

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add columns [B, heads, new, D]; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        old = self.get_seq_length()
        new = old + key_states.shape[-2]
        room = self._room
        # Whoever picked rows or cropped has put other tensors in our place.
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


MERGEABLE = (
    *filter(None, [getattr(cache_utils, "DummyLayer", None)]),  # since transformers 5.23
    DynamicLayer,
    RoomyLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
"""Kinds of layers whose whole content ``merge`` knows; what derives from them may hold more."""


def make_room(cache: Any) -> None:
    """Turn plain layers of keys and values into ``RoomyLayer``s."""
    if isinstance(cache, Cache):
        for i, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer:
                cache.layers[i] = RoomyLayer.of(layer)


def has_columns(cache: Any) -> bool:
    """Whether it holds keys of each token, which padding can be among."""
    layers = cache.layers if isinstance(cache, Cache) else ()
    return any(getattr(layer, "keys", None) is not None for layer in layers)


def has_states(cache: Any) -> bool:
    """Whether it holds states that all tokens read so far have gone into, padding as well."""
    layers = cache.layers if isinstance(cache, Cache) else ()
    kinds = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
    return kinds or any(_tensors(value) for value in _others(cache).values())


def select(cache: Any, index: Tensor) -> None:
    """Keep the rows at ``index``, as often as they stand there.

    Args:
        cache: one of transformers, or an object whose tensors have rows first.
    """
    if isinstance(cache, Cache):
        cache.reorder_cache(cast(torch.LongTensor, index))
    for name, value in _others(cache).items():
        setattr(cache, name, _mapped(lambda state: state[index], value))


def merge(cache: Any, joining: Any) -> None:
    """Add the rows of ``joining``; the shorter of the two gets columns of padding on the left.

    Raises:
        NotImplementedError: a layer may hold more than what is known here.
    """
    if isinstance(cache, Cache):
        for layer, other in zip(cache.layers, joining.layers, strict=True):
            _merge_layers(layer, other)
    for name, value in _others(cache).items():
        setattr(cache, name, _joined(value, getattr(joining, name)))


def _merge_layers(layer: Any, other: Any) -> None:
    if type(layer) not in MERGEABLE:
        raise NotImplementedError(f"rows cannot join those of a {type(layer).__name__}")
    if getattr(layer, "keys", None) is not None:
        layer.keys = _right_aligned(layer.keys, other.keys)
        layer.values = _right_aligned(layer.values, other.values)
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = max(layer.cumulative_length, other.cumulative_length)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        for name in ("conv_states", "recurrent_states"):
            setattr(layer, name, _joined(getattr(layer, name), getattr(other, name)))


def _others(cache: Any) -> dict[str, Any]:
    """What a cache holds beside layers.

    Raises:
        NotImplementedError: it is no object that holds anything.
    """
    if not hasattr(cache, "__dict__"):
        raise NotImplementedError(f"its cache is a {type(cache).__name__}")
    return {name: value for name, value in vars(cache).items() if name != "layers"}


def _tensors(value: Any) -> list[Tensor]:
    """The tensors with rows in lists, tuples and dicts of them."""
    found: list[Tensor] = []
    _mapped(found.append, value)
    return found


def _joined(value: Any, other: Any) -> Any:
    more = iter(_tensors(other))
    return _mapped(lambda state: torch.cat([state, next(more)]), value)


def _mapped(change: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with every tensor with rows in it changed; counters stay."""
    if isinstance(value, Tensor):
        return change(value) if value.dim() else value
    if isinstance(value, dict):
        return {key: _mapped(change, one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(change, one) for one in value)
    return value


def _right_aligned(x: Tensor, y: Tensor) -> Tensor:
    """[B + C, heads, T, D] of [B, heads, T_x, D] and [C, heads, T_y, D]."""
    width = max(x.shape[2], y.shape[2])
    return torch.cat([nn.functional.pad(z, (0, 0, width - z.shape[2], 0)) for z in (x, y)])
