"""Padded batches as a user has them -> the tokens that count.

Per-token tensors stand beside ``input_ids``: what belongs to token t is at column t. As nothing
predicts the first token of a text, they may also be one column shorter, and start with the second.

Shapes: B texts, T columns, N tokens that count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from datamodules.experience import TokenBatch

IGNORED = -100
"""A label that does not count, as everywhere in PyTorch."""


@dataclass(frozen=True)
class PaddedBatch:
    """A user's batch: its texts without their padding, and where their tokens stand in it."""

    tokens: TokenBatch
    """The texts, and which of their tokens are to be predicted."""
    columns: list[Tensor]
    """Where the texts' tokens stand in the padded batch, [T_i]."""
    mask: Tensor
    """[B, T], True at tokens that count: no padding, not a text's first, no label of -100."""

    @property
    def count(self) -> int:
        return len(self.tokens.actions)

    def aligned(self, name: str, value: Any) -> Tensor:
        """[N], what ``value`` says of each token that counts, in float32.

        Args:
            value: [B, T], [B, T - 1] without the first column, or [B] or [B, 1] for whole texts;
                or a list of rows of any lengths.

        Raises:
            ValueError: it has another shape, or is no finite number where a token counts.
        """
        rows, width = self.mask.shape
        value = _table(value, width).float()
        if value.shape in ((rows,), (rows, 1)):
            value = value.reshape(rows, 1).expand(rows, width)
        elif value.shape == (rows, width - 1):
            value = torch.nn.functional.pad(value, (1, 0))
        elif value.shape != (rows, width):
            raise ValueError(
                f"{name} has the shape {list(value.shape)}; with input_ids of {[rows, width]} it"
                f" must be {[rows, width]}, {[rows, width - 1]} (from the second token on) or"
                f" {[rows]}"
            )
        value = value[self.mask]
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} is not finite at {int((~value.isfinite()).sum())} tokens")
        return value

    def scatter(self, flat_N: Tensor) -> Tensor:
        """[N] -> [B, T] on the CPU, zeros where no token counts."""
        out = torch.zeros(self.mask.shape, dtype=torch.float32)
        out[self.mask] = flat_N.detach().float().cpu()
        return out

    def scatter_logits(self, logits: Sequence[Tensor]) -> Tensor:
        """[T_i, V] of each text -> [B, T, V], zeros at padding."""
        out = torch.zeros(*self.mask.shape, logits[0].shape[-1])
        for row, (at, of_text) in enumerate(zip(self.columns, logits, strict=True)):
            out[row, at] = of_text
        return out


def tokens_of(
    input_ids: Any, attention_mask: Any = None, labels: Any = None, mask: Any = None
) -> PaddedBatch:
    """Read a batch.

    Args:
        input_ids: [B, T] or [T]; or a list of texts of any lengths.
        attention_mask: [B, T], 0 at padding, on whichever side.
        labels: [B, T], what is to be predicted, -100 where nothing is; default: ``input_ids``.
        mask: [B, T], 0 at tokens that do not count, prompts for example.

    Raises:
        ValueError: shapes differ, or no token counts.
    """
    ids, real = _padded(input_ids, attention_mask)
    wanted = ids if labels is None else _like(ids, "labels", labels)
    counts = real & (wanted != IGNORED)
    if mask is not None:
        counts &= _like(ids, "mask", mask).bool()
    columns = [row.nonzero().squeeze(1) for row in real]
    for row, at in enumerate(columns):
        if len(at) == 0:
            raise ValueError(f"row {row} of attention_mask is all 0: there is no text")
        counts[row, at[0]] = False
    if not bool(counts.any()):
        raise ValueError(
            "no token counts: texts of one token predict nothing, and padding, labels of -100 and"
            " a mask of 0 leave tokens out"
        )
    sequences = [row[at] for row, at in zip(ids, columns, strict=True)]
    positions = [row[at].nonzero().squeeze(1) for row, at in zip(counts, columns, strict=True)]
    tokens = replace(TokenBatch.collate(sequences, positions), actions=wanted[counts])
    return PaddedBatch(tokens, columns, counts)


def _padded(input_ids: Any, attention_mask: Any) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and which of them are real, on the CPU."""
    ids = _table(input_ids).long()
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2:
        raise ValueError(f"input_ids has the shape {list(ids.shape)}, expected [B, T]")
    if attention_mask is not None:
        return ids, _like(ids, "attention_mask", attention_mask).bool()
    if not _is_ragged(input_ids):
        return ids, torch.ones_like(ids, dtype=torch.bool)
    lengths = torch.tensor([len(row) for row in input_ids])
    return ids, torch.arange(ids.shape[1])[None, :] < lengths[:, None]


def _table(value: Any, width: int = 0) -> Tensor:
    """``value`` on the CPU; rows of several lengths are filled up with zeros, to ``width``."""
    if not _is_ragged(value):
        return torch.as_tensor(value).detach().cpu()
    rows = [torch.as_tensor(row).detach().cpu() for row in value]
    table = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return torch.nn.functional.pad(table, (0, max(width - table.shape[1], 0)))


def _is_ragged(value: Any) -> bool:
    """Whether it is a list of rows that are not all equally long."""
    if isinstance(value, Tensor) or not isinstance(value, Sequence):
        return False
    return len({len(row) if isinstance(row, Sequence | Tensor) else -1 for row in value}) > 1


def _like(ids: Tensor, name: str, value: Any) -> Tensor:
    value = _table(value, ids.shape[1])
    value = value[None] if value.dim() == 1 and len(ids) == 1 else value
    if value.shape != ids.shape:
        raise ValueError(
            f"{name} has the shape {list(value.shape)}, input_ids {list(ids.shape)}: they must"
            " agree"
        )
    return value


def snapshot(value: Any) -> Any:
    """``value`` with its tensors copied: until it is used, the caller may write over them."""
    return apply_to_collection(value, Tensor, lambda x: x.detach().clone())
