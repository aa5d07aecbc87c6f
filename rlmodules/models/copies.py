"""Copies of a policy's weights as products take them, for steps between which weights stay.

They are made of what ``linear`` layers and the vocabulary projection multiply with, and used in
their place for a while.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``torch.nn.functional.linear``, or what gives the same."""
SMALLEST = 2**15
"""Numbers of a weight that is worth a copy."""
Key = tuple[int, torch.Size, int]


class Copies(ABC):
    """Copies of the weights of ``policy`` as they are now.

    They are asked for by address, shape and version: a weight that has been stepped since is read
    itself.

    Args:
        policy: a ``PolicyModel``; where it has nothing to copy, products are what they were.
        device: kind of the device that they are for.
    """

    def __init__(self, policy: Any, device: str) -> None:
        self.policy, self.device = policy, device
        self.autocast = torch.is_autocast_enabled(device)
        self.copies: dict[Key, Tensor] = {}
        self.layers = [layer for layer in policy.base_model.modules() if _is_plain(layer)]

    def weights(self) -> dict[Key, Tensor]:
        """What is worth a copy; tied weights are one."""
        every = [*(layer.weight for layer in self.layers), self.policy.vocabulary_weight]
        return {key_of(weight): weight for weight in every if self._is_large(weight)}

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``torch.nn.functional.linear``, with the copy of ``weight`` where there is one."""

    @contextmanager
    def used(self) -> Iterator[None]:
        """Products with the copies within."""
        if not self.copies or self.autocast != torch.is_autocast_enabled(self.device):
            yield
            return
        self.policy.product = self.product
        for layer in self.layers:
            layer.forward = _Forward(self.product, layer)
        try:
            yield
        finally:
            self.policy.product = nn.functional.linear
            for layer in self.layers:
                vars(layer).pop("forward", None)

    def _is_large(self, weight: Tensor) -> bool:
        plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == self.device
        return plain and weight.numel() >= SMALLEST


class _Forward:
    """The forward pass of a linear layer with another product."""

    def __init__(self, product: Product, layer: nn.Linear) -> None:
        self.product, self.layer = product, layer

    def __call__(self, input: Tensor) -> Tensor:
        return self.product(input, self.layer.weight, self.layer.bias)


def key_of(weight: Tensor) -> Key:
    return weight.data_ptr(), weight.shape, weight._version


def _is_plain(layer: nn.Module) -> bool:
    """A linear layer that is nothing else, and computes as its class says."""
    return type(layer) is nn.Linear and "forward" not in vars(layer)
