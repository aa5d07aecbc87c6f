"""Batched sampling with a KV cache: prompts -> response tokens and their log-probabilities.

Ours, because transformers' ``generate`` draws all rows from one random stream, so that a text
depends on its company, and lets no row join; engines such as vLLM can stand in (``Sampler``).
Each row draws from its own stream of uniform numbers (``seeds``), so its text depends neither on
the other rows nor on how rows are spread over devices. Rows may join at any step, and leave when
they have ended.

Shapes: R rows, T tokens of the longest context, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedTokenizerBase

from datamodules.types import Response, SamplingParams
from rlmodules.models.scoring import PolicyModel
from rlmodules.models.vocabulary import check_ids, match_ends, vocabulary_size
from rlmodules.sampling.choose import choose, stream
from rlmodules.sampling.kv_cache import can_merge, merge, new_cache


class Sampler(Protocol):
    """What writes responses for an algorithm; another engine than ours can be one."""

    def __call__(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Response]:
        """One response for each prompt [T]; the same seed gives the same text."""


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tensor],
    params: SamplingParams,
    seeds: Sequence[int],
) -> list[Response]:
    """One response for each prompt; see ``Decoding`` for arguments and errors.

    Args:
        model: a causal language model, or a ``PolicyModel`` around one.
    """
    decoding = Decoding(PolicyModel.of(model), tokenizer)
    responses = decoding.admit(prompts, [params] * len(prompts), seeds)
    while decoding.rows:
        decoding.step()
    return responses


@dataclass
class Row:
    """One text in the making."""

    response: Response
    params: SamplingParams
    uniform: list[float]
    """One number a token."""
    end_ids: frozenset[int]

    @property
    def shape(self) -> tuple[float, int, float]:
        """What rows that are drawn together must have in common."""
        return self.params.temperature, self.params.top_k, self.params.top_p


class Decoding:
    """The rows that are being written.

    Args:
        model: the policy, in the precision (autocast included) to sample in.
        tokenizer: knows end tokens too, and gives text to look for stop strings in; None: neither.
    """

    def __init__(self, model: PolicyModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, model.device
        self.end_ids = match_ends(model.base_model, tokenizer)
        self.rows: list[Row] = []
        self.cache: Cache | None = None
        self.masked = False
        self.ids = self.attention = self.positions = torch.empty(0)

    @property
    def open(self) -> bool:
        """Whether rows may join now."""
        return not self.rows or can_merge(self.cache)

    @torch.no_grad()
    def admit(
        self, prompts: Sequence[Tensor], params: Sequence[SamplingParams], seeds: Sequence[int]
    ) -> list[Response]:
        """Add rows, and draw the first token of each; their responses grow with every step.

        Args:
            prompts: token ids, [T] each, of any lengths.
            seeds: seed of each row's random stream; the low 32 bits count.

        Raises:
            ValueError: a prompt is empty, too long for the model together with its response, or
                holds an id that the model does not know.
        """
        assert self.open
        joining = [self._row(p, seed) for p, seed in zip(params, seeds, strict=True)]
        _check_lengths(self.model.max_positions, prompts, params)
        check_ids(prompts, vocabulary_size(self.model.base_model))
        different, which = _distinct(prompts)  # a prompt that several rows have is computed once
        ids, attention = _left_pad(different, self._pad_id, self.device)
        padded = bool((attention == 0).any())
        positions = (attention.cumsum(-1) - 1).clamp(min=0)
        mask, empty = attention if padded else None, new_cache(self.model.base_model)
        logits, cache = self.model.next_logits(ids, mask, positions, empty)
        if len(different) < len(prompts):
            rows = torch.tensor(which, device=self.device)
            logits, attention, positions = logits[rows], attention[rows], positions[rows]
            cache.batch_select_indices(rows)
        tokens, keep = self._draw(joining, logits)
        state = (tokens[:, None], attention, positions[:, -1:])
        self._join(joining, cache, state, keep)
        return [row.response for row in joining]

    @torch.no_grad()
    def step(self) -> None:
        """Write the next token of each row."""
        ones = self.attention.new_ones(len(self.rows), 1)
        self.attention = torch.cat([self.attention, ones], dim=1)
        self.positions = self.positions + 1
        attention = self.attention if self.masked else None
        logits, self.cache = self.model.next_logits(self.ids, attention, self.positions, self.cache)
        tokens, keep = self._draw(self.rows, logits)
        self.ids = tokens[:, None]
        if len(keep) < len(self.rows):
            self._keep(keep)

    def _row(self, params: SamplingParams, seed: int) -> Row:
        ends = self.end_ids | frozenset(params.stop_token_ids)
        uniform = stream(seed, params.max_new_tokens).tolist()
        return Row(Response(), params, uniform, ends)

    @property
    def _pad_id(self) -> int:
        return (self.tokenizer and self.tokenizer.pad_token_id) or 0

    def _draw(self, rows: Sequence[Row], logits: Tensor) -> tuple[Tensor, list[int]]:
        """The next token of each row [R], and which rows go on."""
        at = [row.uniform[len(row.response.tokens)] for row in rows]
        uniform = torch.tensor(at, device=self.device)
        shapes = {row.shape for row in rows}
        if len(shapes) == 1:
            drawn = choose(logits, uniform, rows[0].params)
        else:
            drawn = tuple(torch.empty_like(uniform, dtype=t) for t in (torch.long, None, None))
            for shape in shapes:
                mine = [i for i, row in enumerate(rows) if row.shape == shape]
                some = choose(logits[mine], uniform[mine], rows[mine[0]].params)
                for whole, part in zip(drawn, some, strict=True):
                    whole[mine] = part
        said = torch.stack([column.double() for column in drawn]).T.tolist()
        keep = []
        for i, (row, (token, logprob, kept)) in enumerate(zip(rows, said, strict=True)):
            if not self._take(row, int(token), logprob, kept):
                keep.append(i)
        return drawn[0], keep

    def _take(self, row: Row, token: int, logprob: float, kept: float) -> bool:
        """Note a token; returns whether the row has ended."""
        response = row.response
        response.tokens.append(token)
        response.logprobs.append(logprob)
        response.kept_mass.append(kept)
        if token in row.end_ids:
            response.finish_reason = "eos"
            return True
        if row.params.stop_strings and self._hits_stop(row):
            response.finish_reason = "stop"
            return True
        return len(response.tokens) == row.params.max_new_tokens

    def _hits_stop(self, row: Row) -> bool:
        """Whether the response now ends on a stop string.

        Only a tail is decoded: a token carries at least one byte, so a stop string of n bytes lies
        in the last n tokens, plus up to 4 that share a character with it.
        """
        stops = row.params.stop_strings
        assert self.tokenizer is not None, "stop strings need a tokenizer"
        tail = max(len(stop.encode()) for stop in stops) + 4
        text = self.tokenizer.decode(row.response.tokens[-tail:])
        return any(stop in text for stop in stops)

    def _join(
        self, rows: list[Row], cache: Cache, state: tuple[Tensor, ...], keep: list[int]
    ) -> None:
        """Add the rows that go on to those that are there."""
        if len(keep) < len(rows):
            index = torch.tensor(keep, device=self.device, dtype=torch.long)
            rows, state = [rows[i] for i in keep], tuple(x[index] for x in state)
            if keep:
                cache.batch_select_indices(index)
        if not rows:
            return
        if not self.rows:
            self.rows, self.cache = rows, cache
            self.ids, self.attention, self.positions = state
            self.masked = bool((self.attention == 0).any())
            return
        assert self.cache is not None
        merge(self.cache, cache)
        ids, attention, positions = state
        width = max(attention.shape[1], self.attention.shape[1])
        wide = lambda x: nn.functional.pad(x, (width - x.shape[1], 0))  # noqa: E731
        self.attention = torch.cat([wide(self.attention), wide(attention)])
        self.ids = torch.cat([self.ids, ids])
        self.positions = torch.cat([self.positions, positions])
        self.masked = bool((self.attention == 0).any())
        self.rows = self.rows + rows

    def _keep(self, keep: list[int]) -> None:
        self.rows = [self.rows[i] for i in keep]
        if not keep:
            self.cache = None
            return
        index = torch.tensor(keep, device=self.device)
        self.ids, self.attention = self.ids[index], self.attention[index]
        self.positions = self.positions[index]
        if self.cache is not None:
            self.cache.batch_select_indices(index)


def _distinct(prompts: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The different prompts, and which of them each row has."""
    index: dict[tuple[int, ...], int] = {}
    which = [index.setdefault(tuple(prompt.tolist()), len(index)) for prompt in prompts]
    return [prompts[which.index(i)] for i in range(len(index))], which


def _left_pad(prompts: Sequence[Tensor], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        attention[row, width - len(prompt) :] = 1
    return ids.to(device), attention.to(device)


def _check_lengths(
    limit: int | None, prompts: Sequence[Tensor], params: Sequence[SamplingParams]
) -> None:
    for prompt, wanted in zip(prompts, params, strict=True):
        if len(prompt) == 0:
            raise ValueError(
                "a prompt has no tokens: give it text, or a tokenizer with a BOS token"
            )
        if limit is not None and len(prompt) + wanted.max_new_tokens > limit:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens={wanted.max_new_tokens}"
                f" exceed the {limit} positions of the model: shorten one of them"
            )
