"""What passes over a model on paper are made with, and what of it is alive before they begin."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from rlmodules.functional import logprobs as sizes
from rlmodules.functional.logprobs import Projection
from rlmodules.memory.live import LiveBytes
from rlmodules.memory.paper import Paper
from rlmodules.models.adapters import adapters_off
from rlmodules.models.heads import SOFTCAPS, unwrapped

WEIGHTS, REFERENCE, GRADIENTS = "weights", "reference", "gradients"
OPTIMIZER, ACTIVATIONS, LOGITS = "optimizer state", "activations", "logits"
CACHE, TEMPORARY = "KV cache", "temporary"
SIZES = (sizes.CHUNK_BYTES, sizes.KEPT_BYTES, sizes.CACHED_CHUNK_BYTES, sizes.BLOCK_BYTES)
"""How much of the logits exists at once, by the device that they are on."""


@dataclass
class Parts:
    """A model on paper and all that goes with it.

    Attributes:
        paper: the model that is trained.
        reference: a copy of it, or the teacher; None where there is none, or it is the model
            without adapters.
        has_reference: whether there is one at all.
        heads: what is trained beside it: a critic, a reward head.
        autocast: the type that is computed in, where the precision is mixed.
        device: what the run is on, ``cpu`` or ``cuda``; the tensors here always are on the CPU.
        optimizer_bytes: of the optimizer's state.
        accumulates: whether gradients of earlier batches are there when one is computed.
        teacher: of distillation, what ``reference`` is.
        products: shapes of products in half precision, of all passes so far.
    """

    paper: Paper
    reference: Any
    has_reference: bool
    heads: nn.Module | None
    autocast: torch.dtype | None
    device: str
    optimizer_bytes: int
    accumulates: bool
    teacher: Paper | None = None
    products: set[tuple[torch.Size, ...]] = field(default_factory=set)

    @property
    def packs(self) -> bool:
        """Whether rows are packed."""
        return self.paper.packs

    @property
    def weight_bytes(self) -> int:
        heads = self.heads.parameters() if self.heads else ()
        return size_of([*held(self.paper.model), *heads])

    @property
    def reference_bytes(self) -> int:
        """Of what is not the policy's own."""
        if self.reference is None:
            return 0
        model = held(self.paper.model)
        return size_of([*model, *held(self.reference)]) - size_of(model)

    @property
    def trained(self) -> list[nn.Parameter]:
        """All that an optimizer steps."""
        return [*self.paper.trained, *(self.heads.parameters() if self.heads else ())]

    def projection(self, model: Any = None) -> Projection:
        """From hidden states of ``model``, or of the one that is trained, to logits."""
        model = model or self.paper.model
        head, config = unwrapped(model).get_output_embeddings(), model.config.get_text_config()
        caps = [getattr(config, name, None) for name in SOFTCAPS]
        cap = next((float(cap) for cap in caps if cap), None)
        return Projection(head.weight, getattr(head, "bias", None), softcap=cap)

    def fake(self, tensor: Tensor) -> Tensor:
        """Its size alone."""
        return self.paper.mode.from_tensor(tensor)

    @contextlib.contextmanager
    def counting(self, *, gradients: bool = False) -> Iterator[LiveBytes]:
        """Count what is alive within, from what there is after the first step on.

        Args:
            gradients: whether those of earlier batches are there; a step lets go of them.
        """
        live = LiveBytes()
        with self.paper.mode, _sizes_of(self.device), live:
            for model, label in ((self.paper.model, WEIGHTS), (self.heads, WEIGHTS),
                                 (self.reference, REFERENCE)):  # fmt: skip
                if model is not None:
                    live.add_weights(held(model), label)
            with live.as_label(OPTIMIZER):
                state = torch.empty(self.optimizer_bytes, dtype=torch.uint8)
            with live.as_label(GRADIENTS):
                for parameter in self.trained if gradients else ():
                    parameter.grad = torch.empty_like(parameter)
            yield live
            self.products.update(live.products)
            del state
            for parameter in self.trained:
                parameter.grad = None

    def score(self, states: Tensor) -> Tensor:
        """What the heads of a reward model make of one state a text."""
        assert self.heads is not None, "a reward model has a head"
        if not isinstance(self.heads, nn.ModuleDict):
            return self.heads(states)
        joint = self.heads["comparison"](states[0::2], states[1::2])
        return self.heads["head"](states).sum() + joint.sum()

    def shortened(self, layers: int) -> "Parts":
        """The same with the first ``layers`` of the model's layers."""
        short, reference, teacher = self.paper.shortened(layers), None, self.teacher
        if teacher is not None:
            teacher = teacher.shallow()
            reference = teacher.model
        elif self.reference is not None:
            reference = short.reference()
        return replace(self, paper=short, reference=reference, teacher=teacher)

    def of_teacher(self) -> "Parts":
        """The teacher as if it were alone, to write."""
        assert self.teacher is not None, "nobody else writes"
        alone = {"reference": None, "has_reference": False, "heads": None, "teacher": None}
        return replace(self, paper=self.teacher, optimizer_bytes=0, products=set(), **alone)

    def autocasting(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that passes are made in."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=self.autocast)

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[Any]:
        """The frozen model within."""
        if self.reference is not None:
            yield self.reference
        else:
            with adapters_off(self.paper.model):
                yield self.paper.model


def held(model: nn.Module) -> list[Tensor]:
    """All that a model keeps."""
    return [*model.parameters(), *model.buffers()]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, of which views of one storage count once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@contextlib.contextmanager
def _sizes_of(device: str) -> Iterator[None]:
    """Sizes that a device of that kind has, on the CPU."""
    with contextlib.ExitStack() as stack:
        for sizes in SIZES:
            own = sizes.get(device, sizes["cuda"])
            stack.enter_context(patch.dict(sizes, {"cpu": own}))
        yield
