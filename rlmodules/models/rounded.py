"""Weights in the half precision that autocast computes with, for steps between which they stay.

Autocast casts a float32 weight for each product, or keeps what it cast until it ends: a recorded
step (a CUDA graph) can rely on neither. These copies are its own. While texts are written, they
take half of the room that gradients do not take.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.models.copies import Copies, key_of


class Rounded(Copies):
    """Copies of the float32 weights of ``policy``, where autocast rounds them; see ``Copies``."""

    def __init__(self, policy: Any) -> None:
        super().__init__(policy, policy.device.type)
        if self.autocast:
            dtype = torch.get_autocast_dtype(self.device)
            wide = {k: w for k, w in self.weights().items() if w.dtype == torch.float32}
            self.copies = {key: weight.detach().to(dtype) for key, weight in wide.items()}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.functional.linear(x, self.copies.get(key_of(weight), weight), bias)
