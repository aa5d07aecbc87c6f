"""LoRA adapters on a model: put there, switched off."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn

from rlmodules.models.targets import LoraTargets


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), by PEFT."""

    r: int = 0
    """Rank of the adapters; 0 trains all weights of the model instead."""
    alpha: int = 32
    """The adapters' output is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapters' input, in [0, 1)."""
    target_modules: Any = "all-linear"
    """Names of the layers to adapt, or ``all-linear``, experts included."""

    def __post_init__(self) -> None:
        if self.r < 0:
            raise ValueError(f"model.lora.r={self.r} must be 0 (no adapters) or a positive rank")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.lora.dropout={self.dropout} must be in [0, 1)")


def add_lora(model: nn.Module, config: LoraConfig, task: str) -> nn.Module:
    """``model`` with adapters, which alone are trained.

    Args:
        task: PEFT's task type.

    Raises:
        ValueError: no layer has the name of a target.
    """
    targets = config.target_modules
    chosen = LoraTargets(model, targets, config.dropout)
    adapters = PeftLoraConfig(
        task_type=task,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        **chosen.options,
    )
    try:
        adapted = get_peft_model(model, adapters)  # in float32, whatever the base's type
    except ValueError as error:
        raise ValueError(f"model.lora.target_modules={targets!r} fits no layer: {error}") from error
    chosen.say_what_is_left_out()
    return adapted


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[nn.Module]:
    """``model`` with its adapters switched off, for as long as the context lasts.

    (PEFT makes all adapters trainable when it switches them on again: what was frozen stays so.)
    """
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield model
    finally:
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)
