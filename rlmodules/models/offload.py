"""Activations that wait for their backward pass in the processor's memory.

torch's own ``save_on_cpu`` moves all that a product keeps, its weight too; here the weights stay,
and what autocast makes of them. With ``model.gradient_checkpointing`` what a layer begins with is
all that is kept, and moved.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

LEAST = 2**12
"""Numbers below which a tensor is not worth the way."""


def require_gpu(wanted: bool) -> None:
    """
    Raises:
        ValueError: activations are in the processor's memory already.
    """
    if wanted and not torch.cuda.is_available():
        raise ValueError(
            "model.activation_offload=true: there is no GPU here whose memory it would save:"
            " leave it out (model.gradient_checkpointing=true saves memory on any machine)"
        )


def offload_activations(model: Any) -> None:
    """Have ``offloading`` move what is computed with ``model``, from now on."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.offloads_activations = True  # type: ignore[assignment]


def offloading(body: Any) -> AbstractContextManager[Any]:
    """The context of a forward pass of ``body``: it keeps its activations where it is told to."""
    if not (torch.is_grad_enabled() and getattr(body, "offloads_activations", False)):
        return nullcontext()
    held = {weight.untyped_storage().data_ptr() for weight in body.parameters()}
    shapes = {shape for weight in body.parameters() for shape in (weight.shape, weight.shape[::-1])}

    def pack(kept: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        is_weight = kept.shape in shapes or kept.untyped_storage().data_ptr() in held
        if is_weight or kept.numel() < LEAST:
            return kept
        pinned = torch.cuda.is_available()
        moved = torch.empty_like(kept, device="cpu", pin_memory=pinned)
        return kept.device, moved.copy_(kept)

    return saved_tensors_hooks(pack, _unpack)


def _unpack(kept: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    device, moved = kept
    return moved.to(device, non_blocking=True)
