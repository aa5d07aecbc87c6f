"""Linear layers on paper that hold their weight in 4 or 8 bits, as bitsandbytes does.

A product makes the weight in the type that is computed in, and lets go of it; the backward pass
makes it again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from rlmodules.quantization import bytes_of_linear


class HeldLinear(nn.Linear):
    """A frozen layer whose weight is as many bytes as it is held in.

    Args:
        quantization: ``4bit`` or ``8bit``.
        dtype: of the model, in which 4-bit layers compute; 8-bit ones do as autocast says.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, quantization: str, dtype: torch.dtype
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype=dtype)
        size = int(bytes_of_linear(out_features, in_features, quantization, dtype.itemsize))
        held = torch.empty(size, dtype=torch.uint8, device=self.weight.device)
        self.weight = nn.Parameter(held, requires_grad=False)
        self.requires_grad_(False)
        self.computes_in = dtype if quantization == "4bit" else None

    def forward(self, input: Tensor) -> Tensor:
        given, computes_in = input.dtype, self.computes_in
        if computes_in is None and torch.is_autocast_enabled("cpu"):
            given = computes_in = torch.get_autocast_dtype("cpu")
        x = input.to(computes_in or given)
        y = _Product.apply(x, self.weight, (self.out_features, self.in_features))
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(given)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, held: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(held)
        ctx.shape = shape
        return nn.functional.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad @ grad.new_empty(ctx.shape), None, None


def hold_quantized(model: Any, quantization: str, dtype: torch.dtype) -> None:
    """Have those linear layers of ``model`` hold their weight like that which transformers
    quantizes: all but the vocabulary projection.

    Raises:
        ValueError: there are none.
    """
    left_out = get_keys_to_not_convert(model)
    held = 0
    for name, part in list(model.named_modules()):
        is_linear = isinstance(part, Conv1D) or type(part) is nn.Linear
        if not is_linear or not should_convert_module(name, left_out):
            continue
        shape = tuple(part.weight.shape) if isinstance(part, Conv1D) else part.weight.shape[::-1]
        model.set_submodule(name, HeldLinear(*shape, part.bias is not None, quantization, dtype))
        held += 1
    if not held:
        raise ValueError(
            f"model.quantization={quantization}: {type(model).__name__} has no linear layers that"
            " bitsandbytes could hold: leave it out"
        )
