"""Weights in the order in which a CPU's products read them, for steps between which they stay.

A product in bfloat16 first copies its weight into blocks: of a step that writes one token of 16
texts that is half of the product. One copy serves all steps. Only trained weights have one: while
texts are written, it takes the room that their gradients do not take.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``torch.nn.functional.linear``, or what gives the same."""
SMALLEST = 2**15
"""Numbers of a weight that is worth a copy."""
ROWS = 16
"""Of the product that weights are ordered for."""
Key = tuple[int, torch.Size, int]


class Reordered:
    """Copies of the trained weights of ``policy`` as they are now.

    They are asked for by address, shape and version: a weight that has been stepped since is read
    itself.

    Args:
        policy: a ``PolicyModel``; where it has nothing to copy, products are what they were.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.autocast = torch.is_autocast_enabled("cpu")
        self.copies: dict[Key, Tensor] = {}
        self.layers: list[nn.Linear] = []
        if _can_reorder():
            self._copy()

    def _copy(self) -> None:
        self.layers = [layer for layer in self.policy.base_model.modules() if _is_plain(layer)]
        every = [*(layer.weight for layer in self.layers), self.policy.vocabulary_weight]
        weights = {_key(weight): weight for weight in every if self._is_worth_it(weight)}
        for key, weight in weights.items():
            rounded = weight.detach().bfloat16()
            self.copies[key] = torch.ops.mkldnn._reorder_linear_weight(rounded, ROWS)
        shapes = {weight.shape: weight for weight in weights.values()}
        if not all(self._gives_same_bits(weight) for weight in shapes.values()):
            self.copies = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Products with the copies within."""
        if not self.copies or self.autocast != torch.is_autocast_enabled("cpu"):
            yield
            return
        self.policy.product = self.product
        for layer in self.layers:
            layer.forward = _Forward(self.product, layer)  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.policy.product = nn.functional.linear
            for layer in self.layers:
                vars(layer).pop("forward", None)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``torch.nn.functional.linear``, with the copy of ``weight`` where there is one."""
        copy = self.copies.get(_key(weight))
        if copy is None:
            return nn.functional.linear(x, weight, bias)
        bias = None if bias is None else bias.bfloat16()
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), copy, bias, "none", [], "")

    def _is_worth_it(self, weight: Tensor) -> bool:
        dtype = torch.get_autocast_dtype("cpu") if self.autocast else weight.dtype
        plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"
        large = weight.numel() >= SMALLEST
        return plain and large and weight.requires_grad and dtype == torch.bfloat16

    def _gives_same_bits(self, weight: Tensor) -> bool:
        """So that texts are the same with copies and without."""
        x = torch.linspace(-1, 1, ROWS * weight.shape[1]).view(ROWS, -1).sin().bfloat16()
        wanted = nn.functional.linear(x, weight.detach().bfloat16())
        return all(torch.equal(self.product(x[:n], weight, None), wanted[:n]) for n in (ROWS, 1))


class _Forward:
    """The forward pass of a linear layer with another product."""

    def __init__(self, product: Product, layer: nn.Linear) -> None:
        self.product, self.layer = product, layer

    def __call__(self, input: Tensor) -> Tensor:
        return self.product(input, self.layer.weight, self.layer.bias)


def _key(weight: Tensor) -> Key:
    return weight.data_ptr(), weight.shape, weight._version


def _is_plain(layer: nn.Module) -> bool:
    """A linear layer that is nothing else, and computes as its class says."""
    return type(layer) is nn.Linear and "forward" not in vars(layer)


def _can_reorder() -> bool:
    """Whether products in bfloat16 are oneDNN's here, and torch has the operators."""
    needed = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    ops = torch.ops.mkldnn
    there = torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in needed)
    enabled = there and bool(torch.backends.mkldnn.enabled)
    return enabled and ops._is_mkldnn_bf16_supported()
