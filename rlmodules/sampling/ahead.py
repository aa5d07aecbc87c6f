"""Several tokens of all rows, drawn on the device and copied to the host together.

A step of a small model is a thousand launches of work that a card does in less time than the
processor launches it. Recorded once as a CUDA graph it is a single launch. What a row writes after
it has ended is thrown away.

Shapes: R rows, S steps.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from datamodules.types import SamplingParams
from rlmodules.models.heads import backbone
from rlmodules.models.rounded import Rounded
from rlmodules.models.scoring import PolicyModel
from rlmodules.sampling.choose import choose
from rlmodules.sampling.in_place import InPlace

AT_ONCE = 8
"""Steps between two copies to the host."""
SPAN = 512
"""Columns that are made at once: each step reads them all, whether they hold a token or not."""
_not_recorded: WeakSet[PolicyModel] = WeakSet()
"""Models of which a step could not be recorded."""


class Ahead:
    """Writes rows by steps that are recorded.

    Args:
        rows: what was read.
        tokens: [R], of each row the last one, which is still to be read.
        params: of all rows.
        absent: ids that are never drawn.
    """

    def __init__(
        self, rows: InPlace, tokens: Tensor, params: SamplingParams, absent: Tensor | None
    ) -> None:
        self.rows, self.params, self.absent = rows, params, absent
        self.device = tokens.device
        self.tokens = tokens.clone()
        self.uniform = torch.zeros(AT_ONCE, len(tokens), device=self.device)
        self.said = torch.zeros(AT_ONCE, 3, len(tokens), device=self.device)
        self.count = torch.zeros(1, dtype=torch.long, device=self.device)
        self.model: PolicyModel = rows.model
        self.weights = Rounded(self.model)
        self.stamp = self._stamp()
        self.repeat: Callable[[], None] | None = None
        """A step as it was recorded."""

    def write(self, uniform: Sequence[Sequence[float]]) -> list[list[list[float]]]:
        """Tokens, log-probabilities and kept mass, [S][3][R].

        Args:
            uniform: [S][R] numbers in [0, 1); S is at most ``AT_ONCE``, and as much as there is
                room for.
        """
        steps = len(uniform)
        self.uniform[:steps].copy_(torch.tensor(uniform))
        self.count.zero_()
        if self.stamp != self._stamp():  # weights were stepped; what is recorded reads copies
            self.weights, self.stamp, self.repeat = Rounded(self.model), self._stamp(), None
        for _ in range(steps):
            if self.repeat is None:
                self._compute()
                self.repeat = self._recorded()
            else:
                self.repeat()
        self.rows.note(steps)
        return self.said[:steps].tolist()

    def _stamp(self) -> int:
        return sum(weight._version for weight in self.model.parameters())

    def _recorded(self) -> Callable[[], None]:
        """A step as a CUDA graph, where that can be made; nothing is computed."""
        if not can_record(self.model):
            return self._compute
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._compute()
        except RuntimeError as error:
            _not_recorded.add(self.model)
            name = type(backbone(self.model.base_model)).__name__
            warnings.warn(
                f"{name} writes slowly: a step cannot be recorded as a CUDA graph, so the processor"
                f" launches all of each one ({str(error)[:300]})",
                stacklevel=2,
            )
            return self._compute
        return graph.replay

    def _compute(self) -> None:
        """A step; all that it changes are tensors that were there before."""
        with torch.no_grad(), self._uncached(), self.weights.used():
            logits = self.rows.step(self.tokens)
            uniform = self.uniform.index_select(0, self.count)[0]
            drawn = choose(logits, uniform, self.params, self.absent, at_once=True)
            self.tokens.copy_(drawn[0])
            # float32 holds the ids of a vocabulary below 2^24 exactly.
            said = torch.stack([column.float() for column in drawn])
            self.said.index_copy_(0, self.count, said[None])
            self.count.add_(1)

    def _uncached(self) -> AbstractContextManager[Any]:
        """The autocast of now, but without copies of weights that end with it."""
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            return nullcontext()
        return torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False)


def can_record(model: PolicyModel) -> bool:
    """Whether steps of ``model`` can be CUDA graphs, as far as is known."""
    there = model.device.type == "cuda" and torch.cuda.is_available()
    return there and model not in _not_recorded
