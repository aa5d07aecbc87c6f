"""Batched sampling with a KV cache: prompts -> response tokens and their log-probabilities.

Ours, because transformers' ``generate`` draws all rows from one random stream, so that a text
depends on its company, and lets no row join; engines such as vLLM can stand in (``Sampler``).
Each row draws from its own stream of uniform numbers (``seeds``), so its text depends neither on
the other rows nor on how rows are spread over devices. Rows may join at any step, and leave when
they have ended.

Shapes: R rows, T tokens of the longest context, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.types import Response, SamplingParams
from rlmodules.models.reordered import Reordered
from rlmodules.models.scoring import PolicyModel
from rlmodules.models.vocabulary import absent_ids, check_ids, match_ends, vocabulary_size
from rlmodules.sampling.ahead import AT_ONCE, SPAN, Ahead, can_record
from rlmodules.sampling.choose import choose, stream
from rlmodules.sampling.in_place import InPlace
from rlmodules.sampling.reading import Reading
from rlmodules.sampling.ways import goes_in_place, way_of

REORDERED_ROWS, REORDERED_STEPS = 32, 16
"""Rows up to which products are faster with weights in their order (``benchmarks/decoding.py``: 16
rows of the embedded model take 52 ms a token, not 64; 64 the same), and steps from which on the
copies, which take the time of eight, are worth making."""
RECORDED_STEPS, STEADY_STEPS = 24, 8
"""Steps that a recording, which takes the time of about three, is worth making for; steps without
rows that join, after which it is made again."""


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
    def left(self) -> int:
        """How many tokens it may still have."""
        return self.params.max_new_tokens - len(self.response.tokens)

    @property
    def shape(self) -> tuple[float, int, float]:
        """What rows that are drawn together must have in common."""
        return self.params.temperature, self.params.top_k, self.params.top_p


class Decoding:
    """The rows that are being written.

    Args:
        model: the policy, in the precision (autocast included) to sample in.
        tokenizer: knows end tokens too, the ids that may be drawn, and gives text to look for stop
            strings in; None for none of them.
    """

    def __init__(self, model: PolicyModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, model.device
        self.end_ids = match_ends(model.base_model, tokenizer)
        absent = absent_ids(model.base_model, tokenizer, model.num_logits)
        self.absent = None if absent is None else absent.to(self.device)
        self.rows: list[Row] = []
        self.reading = Reading(model, way_of(model))
        self.tokens = torch.empty(0)
        self.weights: Reordered | None = None
        self.ahead: Ahead | None = None
        self.slots: list[Row] = []
        """Whose places those of ``ahead`` are; some have ended."""
        self.steady = STEADY_STEPS

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
        _check_lengths(self.model, prompts, params)
        check_ids(prompts, vocabulary_size(self.model.base_model))
        asked = [self._row(p, seed) for p, seed in zip(params, seeds, strict=True)]
        different, which = _distinct(prompts)  # a prompt that several rows have is computed once
        joining = [asked[i] for rows in which for i in rows]
        if self.rows:
            self.steady = 0
        if self.ahead is not None:
            self._release()
        logits = self.reading.add(different, [len(rows) for rows in which])
        tokens, keep = self._draw(joining, logits)
        there = len(self.rows)
        self.tokens = torch.cat([self.tokens, tokens]) if there else tokens
        self.rows = self.rows + joining
        self._keep([*range(there), *(there + i for i in keep)])
        return [row.response for row in asked]

    @torch.no_grad()
    def step(self) -> None:
        """Write the next token of each row, or the next ``AT_ONCE``."""
        if self.ahead is None and self._pays_to_record():
            left = [row.left for row in self.rows]
            rows = InPlace(self.reading.parts.pop(), min(max(left), SPAN), left)
            self.ahead = Ahead(rows, self.tokens, self.rows[0].params, self.absent)
            self.slots = self.rows
        if self.ahead is not None:
            self._write_ahead(self.ahead)
            return
        self.steady += 1
        with self._products():
            logits = self.reading.step(self.tokens)
        self.tokens, keep = self._draw(self.rows, logits)
        self._keep(keep)

    def _pays_to_record(self) -> bool:
        steps = max(row.left for row in self.rows)
        alike = len({row.shape for row in self.rows}) == 1
        worth = steps >= RECORDED_STEPS and self.steady >= STEADY_STEPS and alike
        return worth and can_record(self.model) and goes_in_place(self.model)

    def _write_ahead(self, ahead: Ahead) -> None:
        going = {id(row) for row in self.rows}
        steps = min(AT_ONCE, ahead.rows.room, max(row.left for row in self.rows))
        starts = [len(row.response.tokens) for row in self.slots]
        pairs = list(zip(self.slots, starts, strict=True))
        # A row that has fewer left, or has ended, draws on: nothing of that is taken.
        uniform = [
            [row.uniform[min(start + n, len(row.uniform) - 1)] for row, start in pairs]
            for n in range(steps)
        ]
        for tokens, logprobs, kept in ahead.write(uniform):
            for i, row in enumerate(self.slots):
                if id(row) in going and self._take(row, int(tokens[i]), logprobs[i], kept[i]):
                    going.discard(id(row))
        self.rows = [row for row in self.rows if id(row) in going]
        if not ahead.rows.room or 2 * len(self.rows) <= len(self.slots):
            self._release()

    def _release(self) -> None:
        """Go on with tensors that grow, and with the rows alone that have not ended."""
        assert self.ahead is not None
        going = {id(row) for row in self.rows}
        keep = [i for i, row in enumerate(self.slots) if id(row) in going]
        self.reading.parts = [self.ahead.rows.released()]
        self.tokens, self.rows = self.ahead.tokens, self.slots
        self.ahead, self.slots = None, []
        self._keep(keep)

    def _products(self) -> AbstractContextManager[None]:
        if len(self.rows) > REORDERED_ROWS:
            return nullcontext()
        if self.weights is None and max(row.left for row in self.rows) >= REORDERED_STEPS:
            self.weights = Reordered(self.model)
        return self.weights.used() if self.weights else nullcontext()

    def _row(self, params: SamplingParams, seed: int) -> Row:
        ends = self.end_ids | frozenset(params.stop_token_ids)
        uniform = stream(seed, params.max_new_tokens).tolist()
        return Row(Response(), params, uniform, ends)

    def _draw(self, rows: Sequence[Row], logits: Tensor) -> tuple[Tensor, list[int]]:
        """The next token of each row [R], and which rows go on."""
        at = [row.uniform[len(row.response.tokens)] for row in rows]
        uniform = torch.tensor(at, device=self.device)
        shapes = {row.shape for row in rows}
        if len(shapes) == 1:
            drawn = choose(logits, uniform, rows[0].params, self.absent)
        else:
            drawn = tuple(torch.empty_like(uniform, dtype=t) for t in (torch.long, None, None))
            for shape in shapes:
                mine = [i for i, row in enumerate(rows) if row.shape == shape]
                some = choose(logits[mine], uniform[mine], rows[mine[0]].params, self.absent)
                for whole, part in zip(drawn, some, strict=True):
                    whole[mine] = part
        # float32 holds the ids of a vocabulary below 2^24 exactly, and not every device has more.
        said = torch.stack([column.float() for column in drawn]).T.tolist()
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

    def _keep(self, keep: Sequence[int]) -> None:
        if len(keep) < len(self.rows):
            self.rows = [self.rows[i] for i in keep]
            self.tokens = self.tokens[torch.tensor(keep, device=self.device, dtype=torch.long)]
            self.reading.keep(keep)


def _distinct(prompts: Sequence[Tensor]) -> tuple[list[Tensor], list[list[int]]]:
    """The different prompts in order of their length, and the rows that have each of them."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt.tolist()), []).append(row)
    which = sorted(rows.values(), key=lambda mine: len(prompts[mine[0]]))
    return [prompts[mine[0]] for mine in which], which


def _check_lengths(
    model: PolicyModel, prompts: Sequence[Tensor], params: Sequence[SamplingParams]
) -> None:
    for prompt, wanted in zip(prompts, params, strict=True):
        if len(prompt) == 0:
            raise ValueError(
                "a prompt has no tokens: give it text, or a tokenizer with a BOS token"
            )
        if not model.positions.hold(len(prompt) + wanted.max_new_tokens):
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and max_new_tokens={wanted.max_new_tokens}"
                f" exceed {model.positions}: shorten one of them"
            )
