"""A card that is none: tensors that say they are on ``cuda:0`` and compute on the CPU, anywhere.

Under ``card()`` what is made on, or moved to, ``cuda`` is an ``OnCard`` around a tensor of the CPU.
So code runs to its end with right numbers, which torch's fake tensors do not have. As on a card, an
operation on tensors of both sides raises. What crosses is noted in a ``Trace``:

- ``to host``: a copy from the card; the processor waits until the card has done all before it.
- ``read``: a number that the processor wants to know (``.item()``, ``float(x)``, ``if x:``); the
  same wait.
- ``size``: a result whose shape depends on values (``x[mask]``, ``nonzero``, ``unique``); the same.
- ``to card``: a copy to the card; it does not wait for the card, but what is not pinned is staged.

It sees what goes through torch's dispatcher on this machine. It does not reach what happens inside
of kernels and their libraries (memory that is asked for and makes a card wait, cuDNN's plans), what
is done on cards alone (``is_cuda`` is False here, autocast to bfloat16 is off, fused kernels are
others), what several streams and processes do, and time.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

CARD = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / package) for package in ("rlmodules", "datamodules"))
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default,
            aten._index_put_impl_.default, aten._unsafe_index.Tensor}  # fmt: skip
COPIES = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default}


class Trace:
    """What crossed between processor and card, by kind and by the function of ours that asked."""

    def __init__(self) -> None:
        self.crossings: Counter[tuple[str, str]] = Counter()

    def note(self, kind: str) -> None:
        frame, where = sys._getframe(1), "elsewhere"
        while frame is not None and not frame.f_code.co_filename.startswith(OURS):
            frame = frame.f_back
        if frame is not None:
            path = Path(frame.f_code.co_filename).relative_to(ROOT)
            where = f"{path.as_posix()}:{frame.f_code.co_name}"
        self.crossings[kind, where] += 1

    def of(self, *kinds: str) -> dict[str, int]:
        """Counts of these kinds, by place."""
        found: Counter[str] = Counter()
        for (kind, where), count in self.crossings.items():
            if kind in kinds:
                found[where] += count
        return dict(found)

    @property
    def waits(self) -> dict[str, int]:
        """How often the processor waits for the card, by place."""
        return self.of("to host", "read", "size")


class OnCard(Tensor):
    """A tensor that says it is on the card."""

    inner: Tensor
    trace: Trace

    @staticmethod
    def __new__(cls, inner: Tensor, trace: Trace) -> "OnCard":
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="meta",  # autograd asks for a card's streams, where it knows that it is one
        )
        made.inner, made.trace = inner, trace
        return made

    @property
    def device(self) -> torch.device:
        return CARD

    def __repr__(self, **kwargs: Any) -> str:
        return f"OnCard({self.inner!r})"

    def tolist(self) -> Any:
        self.trace.note("read")
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a tensor on the card to numpy: copy it to the host first")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, OnCard)]
        return compute(tensors[0].trace, func, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Sends all that is computed through ``compute``."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(self.trace, func, args, kwargs or {})


def compute(trace: Trace, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation where its tensors are, with what crosses noted."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, OnCard)]
    there = [x for x in tensors if not isinstance(x, OnCard)]
    device = kwargs.get("device")
    on_card = bool(here) if device is None else torch.device(device).type in ("cuda", "meta")
    if device is not None:
        kwargs = kwargs | {"device": "cpu"}
    if func in COPIES:
        source = args[0] if func is aten._to_copy.default else args[1]
        from_card = any(isinstance(x, OnCard) for x in tree_leaves(source))
        if func is not aten._to_copy.default:
            on_card = any(isinstance(x, OnCard) for x in tree_leaves(args[0]))
        if from_card != on_card:
            trace.note("to card" if on_card else "to host")
    elif here:
        note_indexing(trace, func, args) if func in INDEXING else note_others(trace, func)
        apart = [x for x in there if x.dim() > 0]
        if func in INDEXING:  # indices may be the processor's, and are copied to the card
            indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
            moved = [x for x in apart if any(x is index for index in indices)]
            for _ in moved:
                trace.note("to card")
            apart = [x for x in apart if not any(x is one for one in moved)]
        if apart:
            shapes = [tuple(x.shape) for x in apart]
            raise RuntimeError(f"{func}: tensors of cuda:0 and, with shapes {shapes}, of the cpu")
    inner = lambda x: x.inner  # noqa: E731
    found = func(*tree_map_only(OnCard, inner, args), **tree_map_only(OnCard, inner, kwargs))
    if not on_card:
        return found
    wrapped = tree_map_only(Tensor, lambda x: OnCard(x, trace), found)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def note_others(trace: Trace, func: Any) -> None:
    if torch.Tag.data_dependent_output in func.tags:
        trace.note("read")
    elif torch.Tag.dynamic_output_shape in func.tags:
        trace.note("size")


def note_indexing(trace: Trace, func: Any, args: Any) -> None:
    masks = [x for x in tree_leaves(args[1]) if isinstance(x, OnCard)]
    if any(x.dtype in (torch.bool, torch.uint8) for x in masks):
        trace.note("size")


@contextmanager
def card(monkeypatch: Any) -> Iterator[Trace]:
    """``cuda`` is there meanwhile, and what crosses is noted."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is a copy to it
    trace = Trace()
    try:
        with Mode(trace):
            yield trace
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
