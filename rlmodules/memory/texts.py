"""Batches of texts as they are computed with: their lengths, and what they begin with alike.

Contents do not matter to memory, so texts are made up where only lengths are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlmodules.models.layout import Layout, pack, pad


@dataclass(frozen=True)
class Group:
    """Texts that begin alike.

    Attributes:
        shared: tokens that they begin with alike.
        lengths: of each text, those tokens included.
        starts: first token of each text that is learned from.
    """

    shared: int
    lengths: tuple[int, ...]
    starts: tuple[int, ...]

    @classmethod
    def of_prompt(cls, prompt: int, responses: Sequence[int]) -> "Group":
        """Responses of these lengths to one prompt, of which every token counts."""
        lengths = tuple(prompt + response for response in responses)
        return cls(prompt, lengths, (max(prompt, 1),) * len(lengths))

    def beside(self, other: "Group") -> "Group":
        """One response, and that of another prompt behind the same prompt."""
        (start,), (length,) = self.starts, self.lengths
        answer = other.lengths[0] - other.starts[0]
        return Group(start, (length, start + answer), (start, start))

    @property
    def packed(self) -> int:
        """Tokens where what is alike is computed once."""
        return self.shared + sum(length - self.shared for length in self.lengths)

    def texts(self) -> list[Tensor]:
        """Made up, and alike exactly as far."""
        made = []
        for i, length in enumerate(self.lengths):
            rest = torch.full((length - self.shared,), 2 + i % 7)
            made.append(torch.cat([torch.ones(self.shared, dtype=torch.long), rest]))
        return made


def width(groups: Sequence[Group]) -> int:
    """Tokens of the longest text."""
    return max(length for group in groups for length in group.lengths)


def size(groups: Sequence[Group], packs: bool) -> int:
    """Tokens that are computed, padding included."""
    if packs:
        return sum(group.packed for group in groups)
    return width(groups) * sum(len(group.lengths) for group in groups)


def laid_out(
    groups: Sequence[Group], *, packs: bool, scored: bool, with_mask: bool = False
) -> tuple[Layout, Tensor, Tensor]:
    """The texts as a model takes them, and the rows that predict a token of interest.

    Args:
        scored: tokens are scored, so that nothing is computed of each text's last one; otherwise
            the texts are read whole.

    Returns:
        Layout; rows [N] of the flattened hidden states, of which equal predictions are one where
        rows are packed; rows of all predictions.
    """
    whole = [group.texts() for group in groups]
    texts = whole
    if scored:
        texts = [[text[: max(len(text) - 1, 1)] for text in group] for group in whole]
    layout = pack(texts) if packs else pad(texts, with_mask=with_mask)
    spans = [span for group in groups for span in zip(group.starts, group.lengths, strict=True)]
    before = torch.cat(
        [at[start - 1 : end - 1] for at, (start, end) in zip(layout.index, spans, strict=True)]
    )
    if not packs:
        return layout, before, before
    flat = [text for group in whole for text in group]
    said = torch.cat([text[start:end] for text, (start, end) in zip(flat, spans, strict=True)])
    return layout, torch.unique(torch.stack([before, said]), dim=1)[0], before
