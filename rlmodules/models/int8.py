"""A linear layer of bitsandbytes that computes with its int8 weights as if they were wide ones.

bitsandbytes' own rounds the activations to int8 too, the more the larger their largest is, so that
writing a token and scoring it give other numbers; and its backward keeps activations where
checkpointing does not find them. Import it only where bitsandbytes is installed.
"""

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn


class Int8Linear(Linear8bitLt):
    """``x W^T + b``, with W in ``weight`` [out, in] as int8 times ``scale`` [out]."""

    scale: Tensor

    @classmethod
    def take_over(cls, layer: Any) -> None:
        """Have a quantized ``layer`` of bitsandbytes compute like this."""
        layer.__class__ = cls
        layer.register_buffer("scale", layer.weight.SCB.float() / 127, persistent=False)
        layer.weight.CB = None  # the weight itself, which would stay behind on another device

    def wide(self, dtype: torch.dtype) -> Tensor:
        """[out, in], what is computed with."""
        return self.weight.data.to(dtype).mul_(self.scale[:, None])

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        out: Tensor = _Product.apply(x, self)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    """``x W^T``, W being made anew in the backward pass: no wide copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, layer.wide(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.wide(gradient.dtype), None
