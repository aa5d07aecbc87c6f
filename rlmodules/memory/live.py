"""Counts the bytes of tensors that are alive, and the most that were at one time.

Fake tensors have sizes and no content: a pass over them takes no memory, and what it would take is
counted storage by storage, as autograd, autocast and hooks really keep them.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HALF = (torch.bfloat16, torch.float16)
aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
CASTS = "casts of weights"
"""Copies of weights in the type that they are multiplied in."""


class LiveBytes(TorchDispatchMode):
    """Every tensor that comes to be within, under the label of that time, until it is freed.

    Attributes:
        live: bytes by label, now.
        peaks: of each phase, the same at the moment at which they were most together.
        products: the different shapes of products in half precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self.label = "other"
        self.live: dict[str, int] = {}
        self.peaks: dict[str, dict[str, int]] = {}
        self.phase = ""
        self.products: set[tuple[torch.Size, ...]] = set()
        self._known: dict[int, tuple[Any, str, int]] = {}  # storage -> its reference, label, size
        self._weights: set[int] = set()
        self._most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in PRODUCTS and args[-1].dtype in HALF:
            self.products.add(tuple(factor.shape for factor in args[-2:]))
        label = self.label
        if func is torch.ops.aten._to_copy.default and _key(args[0]) in self._weights:
            label = CASTS
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor, label)
        return out

    def add(self, tensor: Tensor, label: str) -> None:
        """Count ``tensor``, unless its storage is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        reference = weakref.ref(storage, lambda _: self._forget(key))
        self._known[key] = reference, label, size
        self._count(label, size)

    def add_weights(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count what is there already, of which copies in another type are ``CASTS``."""
        for tensor in tensors:
            self.add(tensor, label)
            self._weights.add(_key(tensor))

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Count ``tensor`` under ``label`` from now on."""
        key = _key(tensor)
        if key in self._known:
            reference, before, size = self._known[key]
            self._known[key] = reference, label, size
            self.live[before] -= size
            self.live[label] = self.live.get(label, 0) + size

    def begin(self, phase: str) -> None:
        """Note peaks as those of ``phase`` from now on."""
        self.phase, self._most = phase, 0
        self._note()

    @contextmanager
    def as_label(self, label: str) -> Iterator[None]:
        """What comes to be within is counted under ``label``."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def gradients_of(self, parameters: Iterable[Tensor], label: str) -> None:
        """Count gradients that a backward pass leaves under ``label``."""
        for parameter in parameters:
            note: Callable[[Tensor], None] = lambda p: self.relabel(p.grad, label)  # noqa: E731
            parameter.register_post_accumulate_grad_hook(note)

    def _count(self, label: str, size: int) -> None:
        self.live[label] = self.live.get(label, 0) + size
        if size > 0:
            self._note()

    def _note(self) -> None:
        total = sum(self.live.values())
        if total > self._most:
            self._most = total
            if self.phase:
                self.peaks[self.phase] = {k: v for k, v in self.live.items() if v}

    def _forget(self, key: int) -> None:
        _, label, size = self._known.pop(key)
        self._weights.discard(key)
        self._count(label, -size)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
