"""A model as it was before LoRA."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


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
