"""The mode of a module while it is asked something."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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
