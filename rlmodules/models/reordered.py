"""Weights in the order in which a CPU's products read them, for steps between which they stay.

A product in bfloat16 first copies its weight into blocks: of a step that writes one token of 16
texts that is half of the product. One copy serves all steps. Only trained weights have one: while
texts are written, it takes the room that their gradients do not take.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.models.copies import Copies, key_of

ROWS = 16
"""Of the product that weights are ordered for."""


class Reordered(Copies):
    """Copies in that order of the trained weights of ``policy``; see ``Copies``."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy, "cpu")
        if _can_reorder():
            self._copy()

    def _copy(self) -> None:
        weights = {key: w for key, w in self.weights().items() if self._is_worth_it(w)}
        for key, weight in weights.items():
            rounded = weight.detach().bfloat16()
            self.copies[key] = torch.ops.mkldnn._reorder_linear_weight(rounded, ROWS)
        shapes = {weight.shape: weight for weight in weights.values()}
        if not all(self._gives_same_bits(weight) for weight in shapes.values()):
            self.copies = {}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        copy = self.copies.get(key_of(weight))
        if copy is None:
            return nn.functional.linear(x, weight, bias)
        bias = None if bias is None else bias.bfloat16()
        return torch.ops.mkldnn._linear_pointwise(x.bfloat16(), copy, bias, "none", [], "")

    def _is_worth_it(self, weight: Tensor) -> bool:
        dtype = torch.get_autocast_dtype("cpu") if self.autocast else weight.dtype
        return weight.requires_grad and dtype == torch.bfloat16

    def _gives_same_bits(self, weight: Tensor) -> bool:
        """So that texts are the same with copies and without."""
        x = torch.linspace(-1, 1, ROWS * weight.shape[1]).view(ROWS, -1).sin().bfloat16()
        wanted = nn.functional.linear(x, weight.detach().bfloat16())
        return all(torch.equal(self.product(x[:n], weight, None), wanted[:n]) for n in (ROWS, 1))


def _can_reorder() -> bool:
    """Whether products in bfloat16 are oneDNN's here, and torch has the operators."""
    needed = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    ops = torch.ops.mkldnn
    there = torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in needed)
    enabled = there and bool(torch.backends.mkldnn.enabled)
    return enabled and ops._is_mkldnn_bf16_supported()
