"""A module that computes something, and is as if it had not."""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from rlmodules.algorithms.means import Means, Stopwatch

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Within, ``module`` may compute, note and draw what it likes: random states, gradients,
    buffers and attributes of it and of its parts are then as they were.

    What it notes in goes into copies meanwhile: means, clocks, lists and dicts. Weights are not
    kept: nothing that is undone here steps them.
    """
    parts = [(part, dict(vars(part)), dict(part._buffers)) for part in module.modules()]
    numbers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    random_states = random.getstate(), np.random.get_state()
    for part, attributes, _ in parts:
        own = {name: value for name, value in attributes.items() if name not in OF_TORCH}
        vars(part).update({name: _copied(value) for name, value in own.items()})
    for parameter, _ in gradients:  # else a backward pass would add to them
        parameter.grad = None
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        for part, attributes, buffers in parts:
            vars(part).clear()
            vars(part).update(attributes)
            part._buffers.clear()
            part._buffers.update(buffers)
        with torch.no_grad():
            for buffer, before in numbers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _copied(value: Any) -> Any:
    """What can be noted in, once more; all else as it is."""
    if isinstance(value, Means | Stopwatch):
        return copy.deepcopy(value)
    return copy.copy(value) if type(value) in (list, dict, set) else value
