"""Adapters merged into the weights below them: on the CPU, in float32, layer by layer.

One layer at a time is copied, so that merging a model takes little more memory than its largest
layer; sums are made in float32 and rounded once, to the type of the weight.
"""

import copy
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn

from rlmodules.models.adapters import WRAPPERS
from rlmodules.models.quantized import as_in_class, plain_linear, quantization_of_layer

MERGED = "(a merged model)"
"""Name of a model that was merged in memory, and that is in no folder."""


def adapted_layers(model: PeftModel) -> dict[str, Any]:
    """Layers with adapters, as PEFT wraps them, by their name in the plain model."""
    found: dict[str, Any] = {}
    last = "\0"
    for name, part in model.get_base_model().named_modules():
        if isinstance(part, WRAPPERS) and not name.startswith(f"{last}."):
            found[name], last = part, name
    return found


def plain_layer(layer: Any) -> nn.Module:
    """What is below the adapters of ``layer``, as it was without them."""
    if isinstance(layer, WRAPPERS[1]):
        layer = layer.original_module
    return layer.get_base_layer() if isinstance(layer, WRAPPERS[0]) else layer


def merged_layer(layer: nn.Module) -> nn.Module:
    """A copy of ``layer`` with its active adapters merged, in float32 on the CPU.

    What is quantized below them is dequantized, and not quantized again.
    """
    below = plain_layer(layer)
    if quantization_of_layer(below) != "none":
        return as_in_class(_merged_wide(layer, below), below)
    merged: Any = copy.deepcopy(layer).to("cpu", torch.float32)
    if hasattr(merged, "unload_and_optionally_merge_module"):
        return merged.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=None
        )
    for part in [part for part in merged.modules() if isinstance(part, WRAPPERS[0])]:
        part.merge()
    return merged.get_base_layer()


def _merged_wide(layer: Any, below: nn.Module) -> nn.Linear:
    """``merged_layer`` of a quantized layer ``below``."""
    wide = plain_linear(below)
    if layer is below:
        return wide
    merged = copy.deepcopy(layer, {id(below): wide}).to("cpu", torch.float32)
    merged.__class__ = PeftLinear  # of ordinary layers; it has the same parts
    merged.merge()
    return merged.get_base_layer()


def unties(model: PeftModel) -> bool:
    """Whether merging gives two weights of their own to embeddings that shared one."""
    inner: Any = model.get_base_model()
    ends = (inner.get_input_embeddings(), inner.get_output_embeddings())
    tied = getattr(inner.config.get_text_config(), "tie_word_embeddings", False)
    return bool(tied) and any(isinstance(end, WRAPPERS) for end in ends)


def merge_adapters(model: PeftModel) -> nn.Module:
    """The plain model below, changed in place: adapters are merged, and all of it is trained."""
    inner: Any = model.get_base_model()
    if unties(model):
        inner.config.get_text_config().tie_word_embeddings = False
    for name, layer in adapted_layers(model).items():
        below = next(plain_layer(layer).parameters())
        parent, _, child = name.rpartition(".")
        merged = merged_layer(layer).to(below.device, below.dtype)
        setattr(inner.get_submodule(parent), child, merged)
    inner.name_or_path = MERGED
    if hasattr(inner, "peft_config"):
        del inner.peft_config
    return inner.requires_grad_(True)
