"""How a model reads texts that grow token by token: the rows, and what it remembers of them.

Most models read prompts of different lengths padded on the left. Recurrent layers would read the
padding too: their prompts are read with those of their own length, and go on together. Some caches
cannot be joined, some models have none that rows could leave. ``ways.py`` finds out which it is.

Shapes: R rows, T tokens of the longest context, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn

from rlmodules.sampling.kv_cache import has_columns, has_states, make_room, merge, select


@dataclass(frozen=True)
class Way:
    """How rows of different lengths are read."""

    caches: bool = True
    """What was read is remembered; otherwise all of it is read again for each token."""
    pads: bool = False
    """Prompts of all lengths are read at once, padded; otherwise those of one length are."""
    merges: bool = True
    """Rows of all lengths go on as one batch; otherwise those that were read at once do."""


PADDED = Way(pads=True)
MERGED = Way()
APART = Way(merges=False)
AFRESH = Way(caches=False, pads=True)


class Reading:
    """What ``model`` has read of some rows."""

    def __init__(self, model: Any, way: Way) -> None:
        self.model, self.way = model, way
        self.parts: list[Any] = []

    def add(self, prompts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """Read prompts; returns the logits [rows, V] of what follows.

        Args:
            prompts: token ids, [T] each, in order of their length.
            counts: how many rows each prompt gives; they stand together, behind all that are there.
        """
        kind = Cached if self.way.caches else Afresh
        pairs = list(zip(prompts, counts, strict=True))
        groups = groupby(pairs, key=lambda pair: self.way.pads or len(pair[0]))
        said = []
        for _, group in groups:
            texts, repeats = zip(*group, strict=True)
            part, logits = kind.read(self.model, texts)
            if sum(repeats) > len(texts):
                which = [i for i, count in enumerate(repeats) for _ in range(count)]
                part.keep(which)
                logits = logits[torch.tensor(which, device=logits.device)]
            said.append(logits)
            if self.parts and self.way.merges:
                self.parts[0].absorb(part)
            else:
                self.parts.append(part)
        return said[0] if len(said) == 1 else torch.cat(said)

    def step(self, tokens: Tensor) -> Tensor:
        """Read a token more of each row, [R]; returns the logits [R, V] of what follows."""
        if len(self.parts) == 1:
            return self.parts[0].step(tokens)
        mine = tokens.split([len(part) for part in self.parts])
        return torch.cat([part.step(some) for part, some in zip(self.parts, mine, strict=True)])

    def keep(self, index: Sequence[int]) -> None:
        """Forget all rows but those at ``index``, which ascends."""
        parts, ends = [], list(accumulate(len(part) for part in self.parts))
        for part, end in zip(self.parts, ends, strict=True):
            start = end - len(part)
            mine = [i - start for i in index if start <= i < end]
            if mine:
                parts.append(part)
            if mine and len(mine) < len(part):
                part.keep(mine)
        self.parts = parts


class Cached:
    """Rows whose past a cache holds."""

    def __init__(self, model: Any, cache: Any, attention: Tensor) -> None:
        self.model, self.cache = model, cache
        self.attention = attention
        """[R, T], 0 at padding, which is on the left."""
        self.positions: Tensor
        """[R, 1], of the last token."""
        self.masked: bool
        self._note_padding()

    @classmethod
    def read(cls, model: Any, prompts: Sequence[Tensor]) -> tuple["Cached", Tensor]:
        """
        Raises:
            NotImplementedError: prompts of different lengths, and layers that read the padding.
        """
        ids, attention = _left_pad(prompts, model.device)
        padded = bool((attention == 0).any())
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        logits, cache = model.next_logits(ids, attention if padded else None, positions, None)
        if padded and has_states(cache):
            raise NotImplementedError("padding goes into the states of its layers")
        make_room(cache)
        return cls(model, cache, attention), logits

    def step(self, tokens: Tensor) -> Tensor:
        self.positions = self.positions + 1
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(self), 1)], dim=1)
        mask = self.attention if self.masked else None
        logits, self.cache = self.model.next_logits(
            tokens[:, None], mask, self.positions, self.cache
        )
        return logits

    def keep(self, index: Sequence[int]) -> None:
        at = torch.tensor(index, device=self.attention.device)
        select(self.cache, at)
        self.attention = self.attention[at]
        self._note_padding()

    def absorb(self, other: "Cached") -> None:
        merge(self.cache, other.cache)
        width = max(self.attention.shape[1], other.attention.shape[1])
        both = (self.attention, other.attention)
        self.attention = torch.cat(
            [nn.functional.pad(rows, (width - rows.shape[1], 0)) for rows in both]
        )
        self._note_padding()

    def __len__(self) -> int:
        return len(self.attention)

    def _note_padding(self) -> None:
        self.positions = self.attention.sum(-1, keepdim=True) - 1
        self.masked = bool((self.attention == 0).any()) and has_columns(self.cache)


class Afresh:
    """Rows that are read from their first token on each time."""

    def __init__(self, model: Any, texts: Sequence[Tensor]) -> None:
        self.model, self.texts = model, list(texts)

    @classmethod
    def read(cls, model: Any, prompts: Sequence[Tensor]) -> tuple["Afresh", Tensor]:
        return cls(model, prompts), model.last_logits(prompts)

    def step(self, tokens: Tensor) -> Tensor:
        pairs = zip(self.texts, tokens.cpu(), strict=True)
        self.texts = [torch.cat([text, token[None]]) for text, token in pairs]
        return self.model.last_logits(self.texts)

    def keep(self, index: Sequence[int]) -> None:
        self.texts = [self.texts[i] for i in index]

    def absorb(self, other: "Afresh") -> None:
        self.texts += other.texts

    def __len__(self) -> int:
        return len(self.texts)


def _left_pad(prompts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        attention[row, width - len(prompt) :] = 1
    return ids.to(device), attention.to(device)
