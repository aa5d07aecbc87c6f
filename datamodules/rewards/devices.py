"""Where models that judge are: on the device of their own process, beside the policy."""

import os
from typing import Any
from weakref import WeakSet

import torch

_followers: WeakSet = WeakSet()
_own: torch.device | None = None


def set_own_device(device: torch.device | None) -> None:
    """Say which device this process trains on; None forgets it."""
    global _own
    _own = device


def own_device() -> torch.device:
    """The device of this process; before a Trainer has said so the GPU of its rank, or the CPU.

    (``cuda`` alone would be the first GPU in every process, and in every thread of one.)
    """
    if _own is not None:
        return _own
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", rank % torch.cuda.device_count())


def place(model: Any, device: str | None) -> Any:
    """Move ``model`` to ``device``; or have it follow the process, from its next use on, if that is
    None."""
    if device is None:
        _followers.add(model)
        return model
    return model.to(device)


def follow(model: Any) -> None:
    """Move ``model`` to the process's own device, if it was placed to follow it."""
    if model in _followers:
        model.to(own_device())
