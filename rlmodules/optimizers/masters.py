"""Weights in half precision, or on a device that is to hold no optimizer state, trained in float32.

An update of a millionth vanishes in bfloat16, whose neighbours are a 128th apart: of AdamW's steps
at a learning rate of 1e-6, 0.2% of the weights move at all. So the optimizer steps float32 copies,
the masters, which are in the checkpoint with its state, and the weights are these, rounded.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlmodules.optimizers.table import CHUNK

Groups = list[dict[str, Any]]
HALF = (torch.bfloat16, torch.float16)


class Masters(Optimizer):
    """Has another optimizer step float32 copies of the weights, and rounds these into them.

    A checkpoint holds for each weight what the other optimizer keeps, and its ``master``. Weights
    that are in float32 and in place already have none.

    Args:
        groups: of the weights, as torch takes them.
        make: makes the other optimizer, of such groups of copies.
        device: where copies, gradients in float32 and state are; None: beside the weights.
    """

    def __init__(
        self, groups: Groups, make: Callable[[Groups], Optimizer], device: str | None = None
    ) -> None:
        super().__init__(groups, {})
        self._copied = {p for p in self._weights() if p.dtype in HALF or device is not None}
        self._masters = {
            p: p.detach().to(device or p.device, torch.float32, copy=p in self._copied)
            for p in self._weights()
        }
        self._inner = make(
            [g | {"params": [self._masters[p] for p in g["params"]]} for g in self.param_groups]
        )
        self._tell(self._inner.param_groups, self.param_groups)

    def _weights(self) -> Iterator[Tensor]:
        return chain.from_iterable(group["params"] for group in self.param_groups)

    @staticmethod
    def _tell(source: Groups, target: Groups) -> None:
        for said, group in zip(source, target, strict=True):
            group.update({name: value for name, value in said.items() if name != "params"})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the other optimizer, in pieces, so that few gradients are there twice."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._tell(self.param_groups, self._inner.param_groups)  # a schedule has told us alone
        for piece in in_pieces([p for p in self._weights() if p.grad is not None]):
            for p in piece:
                master = self._masters[p]
                if p not in self._copied:
                    master.data = p.data
                elif master not in self._inner.state:
                    master.copy_(p)  # weights may have been loaded since this was made
                assert p.grad is not None
                master.grad = p.grad.to(master.device, torch.float32)
            self._inner.step()
            for p in piece:
                master = self._masters[p]
                master.grad = None
                if master.data_ptr() != p.data_ptr():
                    p.copy_(master)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As any optimizer's; it is not kept in ``state``, which Lightning moves to the GPU."""
        state = {}
        for key, p in enumerate(self._weights()):
            if (master := self._masters[p]) in self._inner.state:
                copied = {"master": master.detach()} if p in self._copied else {}
                state[key] = self._inner.state[master] | copied
        return super().state_dict() | {"state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; its tensors keep their types, which torch's own loading casts.

        Raises:
            ValueError: the state is of weights of another type or place.
        """
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        pairs = zip(self._weights(), keys)  # noqa: B905  # torch compares how many there are
        saved = {p: state_dict["state"].get(key) for p, key in pairs}
        if any(kept and (p in self._copied) != ("master" in kept) for p, kept in saved.items()):
            raise ValueError(OTHER_WEIGHTS)
        super().load_state_dict(state_dict | {"state": {}})
        self._tell(self.param_groups, self._inner.param_groups)
        self._inner.state.clear()
        for p, kept in saved.items():
            if kept is None:
                continue
            master = self._masters[p]
            self._inner.state[master] = {
                name: value.to(master.device, copy=True) if isinstance(value, Tensor) else value
                for name, value in kept.items()
                if name != "master"
            }
            if p in self._copied:
                # Not in place: who has a state in hand may have to go back to it.
                master.data = kept["master"].to(master.device, copy=True)


OTHER_WEIGHTS = (
    "the checkpoint's optimizer and this one hold the weights in different types or places: go on"
    " with the model.dtype, trainer.precision and algo.optimizer.name that it was made with, or"
    " start a new run from its exported model (model.name=FOLDER)"
)


def in_half_precision(optimizer: Optimizer) -> bool:
    """Whether some of what it trains is."""
    return any(p.dtype in HALF for group in optimizer.param_groups for p in group["params"])


def in_pieces(weights: list[Tensor], most: int = CHUNK) -> Iterator[list[Tensor]]:
    """``weights`` in turn, each piece of at most ``most`` elements, or of one weight."""
    piece: list[Tensor] = []
    for p in weights:
        if piece and sum(q.numel() for q in piece) + p.numel() > most:
            yield piece
            piece = []
        piece.append(p)
    if piece:
        yield piece


def refuse_masters(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """For optimizers without copies: refuse the state of one that has them.

    Raises:
        ValueError: it is such a state.
    """
    if any("master" in kept for kept in state_dict["state"].values()):
        raise ValueError(OTHER_WEIGHTS)
