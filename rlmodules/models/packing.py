"""May a model be given packed rows? A question that changes nothing, and a switch.

The question is answered by comparison: packed and padded, the same sequences must have the same
hidden states. Tokens that look ahead, mixing along the sequence outside of attention, biases, and
windows or caps that a model keeps to itself fail it. The comparison is made where they would show:
in float32, beyond windows (shortened meanwhile), and with scores large enough for a cap.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.models.attention import PACKED
from rlmodules.models.layout import Layout, flat_hidden, pack, pad
from rlmodules.models.modes import evaluating

HALF = (torch.bfloat16, torch.float16)
WINDOW = 3
"""Tokens that a sliding window or a chunk of attention has while models are compared."""
SHARPNESS = {1.0: 1e-4, 32.0: 1e-3, 1024.0: 1e-3}
"""What attention scores are multiplied by -> relative error that rounding explains."""


def enable_packing(body: Any) -> None:
    """Let ``body`` take packed rows from now on; rows that are not packed keep their attention."""
    found = body.config._attn_implementation
    body.set_attn_implementation(PACKED.get(found, found))


def takes_packed(body: nn.Module) -> bool:
    """Whether ``body`` computes packed rows as it computes each row alone; leaves it as it is.

    Warns with the reason where it does not.
    """
    reason = _obstacle(body)
    if reason:
        warnings.warn(
            f"{type(body).__name__} does not take packed rows ({reason}): every response is"
            " computed with its prompt, and padded",
            stacklevel=2,
        )
    return reason is None


def _obstacle(body: Any) -> str | None:
    found = getattr(body.config, "_attn_implementation", None)
    if found in PACKED.values():
        return None  # it was compared before it was switched on
    if found not in PACKED or not hasattr(body, "set_attn_implementation"):
        return f"its attention is {found}"
    groups = [[[3, 5, 7, 9, 4, 8, 6, 5], [3, 5, 7, 9, 4, 3]], [[6, 2, 3, 8, 8], [6, 2, 9, 9, 7]]]
    ids = [[torch.tensor(sequence) for sequence in group] for group in groups]
    device = next(body.parameters()).device
    padded, packed = pad(ids).to(device), pack(ids).to(device)
    with evaluating(body), _float32(body), _short_windows(body):
        for sharpness, tolerance in SHARPNESS.items():
            with _sharpened(body, sharpness):
                try:
                    alone = flat_hidden(body, padded)
                    enable_packing(body)
                    same = torch.equal(flat_hidden(body, padded), alone)
                    error = _error(flat_hidden(body, packed), packed, alone, padded)
                except (AttributeError, TypeError, ValueError, RuntimeError) as failure:
                    return f"{type(failure).__name__}: {str(failure)[:200]}"
                finally:
                    body.set_attn_implementation(found)
            if not same:
                return "its padded rows change with the name of its attention"
            if not error < tolerance:
                return f"its hidden states are off by {error:.2g}"
    return None


def _error(packed: Tensor, here: Layout, alone: Tensor, there: Layout) -> float:
    """Largest error of a token's hidden state, relative to its norm."""
    at = [torch.cat(layout.index) for layout in (here, there)]
    wrong, right = packed[at[0]].double(), alone[at[1]].double()
    return ((wrong - right).norm(dim=-1) / right.norm(dim=-1).clamp(min=1e-6)).max().item()


@contextlib.contextmanager
def _float32(body: nn.Module) -> Iterator[None]:
    """Compute in float32, holding one layer's weights in it at a time."""
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, args: tuple) -> None:
        for weight in module.parameters(recurse=False):
            if weight.dtype in HALF:
                narrow[weight] = weight.data
                weight.data = weight.data.float()

    def restore(module: nn.Module, *args: object) -> None:
        for weight in module.parameters(recurse=False):
            if weight in narrow:
                weight.data = narrow.pop(weight)

    def widen_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output.float()

    hooks = []
    for module in body.modules():
        if isinstance(module, nn.Embedding):  # a vocabulary of them is large, a few rows are not
            hooks.append(module.register_forward_hook(widen_output))
        elif any(weight.dtype in HALF for weight in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore, always_call=True))
    try:
        with torch.autocast(next(body.parameters()).device.type, enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in narrow.items():  # of a module that others reach into
            weight.data = data


@contextlib.contextmanager
def _short_windows(body: Any) -> Iterator[None]:
    """Sliding windows and chunks of attention of ``WINDOW`` tokens, on layers and in configs."""
    owners = [*body.modules(), body.config, body.config.get_text_config()]
    is_window = lambda name: "sliding_window" in name or "chunk_size" in name  # noqa: E731
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
