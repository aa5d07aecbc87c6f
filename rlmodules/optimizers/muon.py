"""Muon (Keller Jordan et al. 2024) beside AdamW, as its authors use it, as one optimizer.

Muon makes the step of a matrix orthogonal, which suits weights that map hidden states to hidden
states. Embeddings, output heads, biases, norms and tensors of other dimensions (the stacked experts
of a mixture) are AdamW's.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

Groups = list[dict[str, Any]]


def matrices(model: nn.Module) -> set[int]:
    """Ids of the parameters that Muon takes: 2-D weights in the layers of a transformer.

    Adapters count as what they are on: those of an embedding or of the output head are not taken.
    """
    ends = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in INOUT]
    ends += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    left = {id(p) for end in ends if end is not None for p in end.parameters()}
    return {
        id(p)
        for name, p in model.named_parameters()
        if name.endswith(".weight") and p.ndim == 2 and id(p) not in left
    }


INOUT = ("input", "output")


def apart(groups: Groups, taken: Collection[int]) -> Iterator[dict[str, Any]]:
    """Each group in two: of what Muon takes (``muon`` says so), and of the rest.

    Args:
        taken: ids of parameters.
    """
    for group in groups:
        for muon in (True, False):
            if params := [p for p in group["params"] if (id(p) in taken) == muon]:
                yield group | {"params": params, "muon": muon}


class MuonAndAdamW(Optimizer):
    """Muon steps the groups that say ``muon``, AdamW the others; state and groups are shared.

    Args:
        groups: as ``apart`` gives them.
        make_muon, make_adamw: each makes its optimizer of some groups.
    """

    def __init__(
        self,
        groups: Groups,
        make_muon: Callable[[Groups], Optimizer],
        make_adamw: Callable[[Groups], Optimizer],
    ) -> None:
        super().__init__(groups, {})
        self._parts = {
            muon: make(mine)
            for muon, make in ((True, make_muon), (False, make_adamw))
            if (mine := [group for group in self.param_groups if group["muon"] == muon])
        }
        self._share()

    def _share(self) -> None:
        for muon, part in self._parts.items():
            part.param_groups = [group for group in self.param_groups if group["muon"] == muon]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()  # a loaded state comes with groups of its own

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts.values():
            part.step()
        return loss
