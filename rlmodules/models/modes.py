"""The mode of a module while it is asked something, and its dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off and no gradients within; every part is then in the mode it was in, come what may.

    Not PyTorch's inference mode: what is computed within may be trained on afterwards.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def disable_dropout(model: Any) -> list[tuple[Any, str, float]]:
    """Set every dropout to 0; returns what was changed: owner, name and rate.

    Between two passes over one text dropout is a difference that no training made: ratios would
    not begin at 1, nor the KL to the reference at 0. Some architectures keep the rate in a module
    of its own, some in a plain number, some in the config; LoRA has one too.
    """
    changed: list[tuple[Any, str, float]] = []
    for module in model.modules():
        changed += [(module, "p", module.p)] if isinstance(module, _DropoutNd) and module.p else []
        changed += _rates(module)
    if hasattr(model, "config"):
        changed += _rates(model.config.get_text_config())
    for adapter in getattr(model, "peft_config", {}).values():
        changed += _rates(adapter)
    for owner, name, _ in changed:
        setattr(owner, name, 0.0)
    return changed


def _rates(owner: Any) -> list[tuple[Any, str, float]]:
    found = [(name, value) for name, value in vars(owner).items() if "drop" in name]
    return [(owner, name, value) for name, value in found if isinstance(value, float) and value]


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Every dropout of ``model`` is 0 within, and then what it was."""
    changed = disable_dropout(model)
    try:
        yield
    finally:
        for owner, name, rate in changed:
            setattr(owner, name, rate)
