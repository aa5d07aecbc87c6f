"""Sequences that share a prefix, laid out so that a model computes every token once.

``pack`` joins all tokens of a batch into one row without any padding. A group (the responses to
one prompt) stands there as ``shared prefix, rest of response 1, rest of response 2, ...``: the
prefix is whatever the group's sequences begin with alike. ``attention.py`` lets each rest see
its prefix and itself, so a causal model computes what it would for each sequence alone.

``pad`` is the plain layout, one row a sequence, for models that ``pack`` does not fit: encoders,
whose tokens also look ahead, and architectures whose layers do not go through transformers'
attention interface.

Shapes: S sequences, N tokens in the packed row, T tokens of the longest, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.experience import TokenBatch
from rlmodules.models.modes import evaluating
from rlmodules.models.offload import offloading
from rlmodules.models.segments import Segments, encoded

Groups = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Layout:
    """What a backbone takes, and where each token's hidden state comes out."""

    input_ids: Tensor
    """[1, N] packed, [S, T] padded on the right."""
    sequences: list[Tensor]
    """Token ids, [T_s]."""
    index: list[Tensor]
    """Where the hidden states of each sequence's tokens are in the flattened output, [T_s]."""
    position_ids: Tensor | None = None
    """[1, N]; packed only."""
    segments: Segments | None = None
    """Packed only."""
    attention_mask: Tensor | None = None
    """[S, T], for models whose tokens look ahead."""

    def to(self, device: torch.device) -> "Layout":
        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return Layout(
            input_ids=move(self.input_ids),
            sequences=[move(s) for s in self.sequences],
            index=[move(i) for i in self.index],
            position_ids=None if self.position_ids is None else move(self.position_ids),
            segments=self.segments,
            attention_mask=None if self.attention_mask is None else move(self.attention_mask),
        )


def lay_out(tokens: TokenBatch, *, packed: bool, whole: bool) -> tuple[Layout, Tensor]:
    """Sequences as a model takes them, and where the hidden states come out that predict tokens.

    Args:
        packed: ``pack`` what begins alike, else ``pad``.
        whole: lay out also what follows a sequence's last token of interest.
    """
    pairs = zip(tokens.sequences, tokens.positions, strict=True)
    # The last token of interest is predicted from before it.
    ends = [len(s) if whole else int(at[-1]) if len(at) else 0 for s, at in pairs]
    groups = [[row for row in group if ends[row]] for group in tokens.groups()]
    groups = [group for group in groups if group] or [[0]]  # DDP wants a graph
    texts = [[tokens.sequences[row][: max(ends[row], 1)] for row in group] for group in groups]
    layout = pack(texts) if packed else pad(texts)
    rows = [row for group in groups for row in group]
    where = [at[tokens.positions[r] - 1] for r, at in zip(rows, layout.index, strict=True)]
    return layout, torch.cat(where)


def pack(groups: Groups) -> Layout:
    """One row without padding; what the sequences of a group begin with alike is there once."""
    tokens, positions, segments, index = [], [], [], []
    offset = 0
    for group in groups:
        prefix = shared_prefix(group)
        tokens.append(group[0][:prefix])
        positions.append(torch.arange(prefix))
        start = offset + prefix
        for sequence in group:
            rest = len(sequence) - prefix
            tokens.append(sequence[prefix:])
            positions.append(torch.arange(prefix, len(sequence)))
            at = torch.arange(offset, offset + prefix)
            index.append(torch.cat([at, torch.arange(start, start + rest)]))
            start += rest
        segments.append((prefix, *(len(sequence) - prefix for sequence in group)))
        offset = start
    return Layout(
        input_ids=torch.cat(tokens)[None],
        sequences=[sequence for group in groups for sequence in group],
        index=index,
        position_ids=torch.cat(positions)[None],
        segments=tuple(segments),
    )


def pad(groups: Groups, *, with_mask: bool = False) -> Layout:
    """One row a sequence, padded on the right to the longest.

    Args:
        with_mask: for models whose tokens look ahead; a causal one cannot see the padding.
    """
    sequences = [sequence for group in groups for sequence in group]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    width = ids.shape[1]
    index = [torch.arange(len(s)) + row * width for row, s in enumerate(sequences)]
    mask = None
    if with_mask:
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        mask = (torch.arange(width)[None, :] < lengths[:, None]).long()
    return Layout(ids, sequences, index, attention_mask=mask)


def unpad(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[Tensor]]:
    """Padded texts [B, T] as groups of one text each, [T_i]."""
    if attention_mask is None:
        return [[row] for row in input_ids.cpu()]
    rows = zip(input_ids.cpu(), attention_mask.bool().cpu(), strict=True)
    texts = [ids[mask] for ids, mask in rows]
    if any(len(text) == 0 for text in texts):
        raise ValueError("a row of attention_mask is all 0: there is no text to score")
    return [[text] for text in texts]


def shared_prefix(group: Sequence[Tensor]) -> int:
    """How many tokens all sequences begin with alike."""
    if len(group) == 1:
        return len(group[0])
    shortest = min(len(sequence) for sequence in group)
    stacked = torch.stack([sequence[:shortest] for sequence in group])
    differs = (stacked != stacked[0]).any(0)
    return int(differs.int().argmax()) if bool(differs.any()) else shortest


def flat_hidden(body: nn.Module, layout: Layout) -> Tensor:
    """[N, H] or [S * T, H], the last hidden states; ``layout.index`` finds a sequence's own."""
    inputs = {"input_ids": layout.input_ids, "use_cache": False}
    if layout.segments is not None:
        # A mask of four dimensions is handed to the layers as it is; segment_attention needs none.
        nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=layout.input_ids.device)
        inputs |= {
            "position_ids": layout.position_ids,
            "attention_mask": nothing,
            "segments": encoded(layout.segments),
        }
    elif layout.attention_mask is not None:
        inputs["attention_mask"] = layout.attention_mask
    with offloading(body):
        return body(**inputs)[0].flatten(0, 1)


def is_causal(body: nn.Module) -> bool:
    """Whether no token of ``body`` sees a later one; found out by changing the last of three."""
    ids = torch.tensor([[3, 5, 7], [3, 5, 9]], device=next(body.parameters()).device)
    with evaluating(body):
        hidden = body(input_ids=ids, use_cache=False)[0][:, :2]
    return torch.allclose(hidden[0], hidden[1], rtol=1e-3, atol=1e-3)


def look_at(body: Any) -> tuple[int, bool]:
    """``(H, is_causal)`` of ``body``, found out by trying on texts of three tokens.

    Raises:
        ValueError: the hidden states of a text are others when it stands beside a longer one, or it
            is no transformer that reads tokens alone.
    """
    name, device = type(body).__name__, next(body.parameters()).device
    if body.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder and a decoder: choose a model that is one of them")
    short, long = torch.tensor([3, 5, 7]), torch.tensor([4, 3, 6, 5, 9])
    try:
        causal = is_causal(body)
        with evaluating(body):
            alone, beside = (
                flat_hidden(body, pad([texts], with_mask=not causal).to(device))[:3].float()
                for texts in ([short], [short, long])
            )
    except (AttributeError, AssertionError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} does not read a text of three tokens ({type(error).__name__}: {error}):"
            " choose another model"
        ) from error
    tolerance = 1e-3 if next(body.parameters()).dtype == torch.float32 else 0.05
    if not torch.allclose(alone, beside, rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"{name}: the hidden states of a text differ by {(alone - beside).abs().max():.3g} when"
            " it stands beside a longer one, so its scores would: choose another model"
        )
    return alone.shape[-1], causal
