"""What a model must be like while one of its results is compared with another.

Two ways to the same hidden states differ by rounding, or because one of them is wrong. Which it is
shows in float32, beyond windows (shortened meanwhile), and with attention scores large enough that
it matters which token is attended to.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.models.modes import evaluating

HALF = (torch.bfloat16, torch.float16)
WINDOW = 3
"""Tokens that a sliding window or a chunk of attention has while models are compared."""
WINDOWS = ("sliding_window", "chunk_size", "index_topk")
"""What is in the names of such sizes."""
EXCUSED = 64
"""Times what the last bit of the embeddings moves a result may be off by rounding: another order of
a sum rounds at each layer (of SmolLM2 on a processor with AMX: 24 times)."""


@contextlib.contextmanager
def comparable(body: nn.Module, sharpness: float) -> Iterator[None]:
    """``body`` is like that within, its attention scores multiplied by ``sharpness``."""
    with evaluating(body), _float32(body), _short_windows(body), _sharpened(body, sharpness):
        yield


def largest_error(wrong: Tensor, right: Tensor, least: float = 1e-6) -> float:
    """Largest of ``relative_errors``."""
    return relative_errors(wrong, right, least).max().item()


def relative_errors(wrong: Tensor, right: Tensor, least: float = 1e-6) -> Tensor:
    """Differences [...] of vectors [..., H], relative to the norm of the right one.

    Args:
        least: what a smaller norm counts as.
    """
    wrong, right = wrong.cpu().double(), right.cpu().double()
    return (wrong - right).norm(dim=-1) / right.norm(dim=-1).clamp(min=least)


@contextlib.contextmanager
def nudged(body: Any) -> Iterator[bool]:
    """Every embedding is the next larger number within: what results move by then is what rounding
    alone could explain. Whether it is so; not where a model does not say which its embeddings are.
    """
    try:
        embeddings = body.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        yield False
        return

    def next_number(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return torch.nextafter(output, torch.full_like(output, torch.inf))

    hook = embeddings.register_forward_hook(next_number)
    try:
        yield True
    finally:
        hook.remove()


@contextlib.contextmanager
def _float32(body: nn.Module) -> Iterator[None]:
    """Compute in float32, holding one layer's weights in it at a time."""
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, args: tuple) -> None:
        for weight in _weights(module):
            narrow[weight] = weight.data
            weight.data = weight.data.float()

    def restore(module: nn.Module, *args: object) -> None:
        for weight in module.parameters():
            if weight in narrow:
                weight.data = narrow.pop(weight)

    def widen_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output.float()

    hooks = []
    for module in _layers(body):
        if isinstance(module, nn.Embedding):  # a vocabulary of them is large, a few rows are not
            hooks.append(module.register_forward_hook(widen_output))
        elif _weights(module):
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore, always_call=True))
    computed = _replaced(list(body.modules()), "compute_dtype".__eq__, _single, torch.dtype)
    try:
        with torch.autocast(next(body.parameters()).device.type, enabled=False), computed:
            yield  # quantized layers have a compute_dtype
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in narrow.items():  # of a module that others reach into
            weight.data = data


def _single(dtype: torch.dtype) -> torch.dtype:
    return torch.float32


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module.parameters() if weight.dtype in HALF]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """What is computed at once: the items of lists of modules, and what has no modules in it.

    A layer is one as a whole: the parts of some use each other's weights.
    """
    if isinstance(module, nn.ModuleList) or not any(True for _ in module.children()):
        yield from module.children() if isinstance(module, nn.ModuleList) else [module]
        return
    for part in module.children():
        yield from _layers(part)


@contextlib.contextmanager
def _short_windows(body: Any) -> Iterator[None]:
    """Sliding windows and chunks of attention of ``WINDOW`` tokens, and as many that an indexer
    chooses, on layers and in configs."""
    owners = [*body.modules(), body.config, body.config.get_text_config()]
    is_window = lambda name: any(window in name for window in WINDOWS)  # noqa: E731
    with _replaced(owners, is_window, lambda value: min(value, WINDOW), int):
        yield


@contextlib.contextmanager
def _sharpened(body: nn.Module, factor: float) -> Iterator[None]:
    """Attention scores multiplied by ``factor``."""
    with _replaced(list(body.modules()), "scaling".__eq__, lambda value: value * factor, float):
        yield


@contextlib.contextmanager
def _replaced(
    owners: Sequence[Any], is_meant: Callable[[str], bool], new: Callable[[Any], Any], kind: type
) -> Iterator[None]:
    """Plain attributes of the given kind and name with ``new(value)`` in their place."""
    before = [
        (owner, name, value)
        for owner in {id(owner): owner for owner in owners}.values()
        for name, value in vars(owner).items()
        if is_meant(name) and type(value) is kind
    ]
    try:
        for owner, name, value in before:
            setattr(owner, name, new(value))
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
