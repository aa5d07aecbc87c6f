"""Compiled decoder layers: what a layer computes token by token becomes one pass over its memory.

Each layer is compiled by itself (regional compilation), and all of one kind share the code: the
whole body takes three times as long to compile and gains nothing here.
"""

import os
import shutil
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


def has_compiler() -> bool:
    """Whether this machine has what ``torch.compile`` writes code for: a C++ compiler, and on a
    card Triton."""
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        return has_triton()
    named = os.environ.get("CXX")
    return any(map(shutil.which, [named] if named else ["g++", "clang++", "c++"]))


def layers_of(body: Any) -> list[nn.Module]:
    """The decoder layers of a transformer, as its class names them; none where it names none."""
    names = set(getattr(body, "_no_split_modules", None) or ())
    lists = [part for part in body.children() if isinstance(part, nn.ModuleList)]
    return [layer for part in lists for layer in part if type(layer).__name__ in names]


def compile_layers(body: nn.Module) -> None:
    """Have each decoder layer of ``body`` compiled when it is first called.

    Raises:
        ValueError: the architecture does not say which its layers are.
    """
    layers = layers_of(body)
    if not layers:
        raise ValueError(
            f"model.compile=true: {type(body).__name__} does not say which its layers are: set"
            " model.compile=false"
        )
    for layer in layers:
        layer.compile(dynamic=True)


def eagerly() -> AbstractContextManager[None]:
    """Compiled layers run as they are written within."""
    return torch.compiler.set_stance("force_eager")
