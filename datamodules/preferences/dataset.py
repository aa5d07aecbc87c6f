"""PreferenceDataset: texts -> ragged sequences of tokens, checked; what a batch holds."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.examples.dataset import (
    Example,
    ExampleBatch,
    ExampleDataset,
    says_nothing,
)
from datamodules.examples.tokenized import Fitted, fitted
from datamodules.preferences.borders import to_the_token
from datamodules.preferences.rows import Pair, Scored, as_pair
from datamodules.text.encoding import Limits, render_all
from datamodules.text.prompts import as_prompt


@dataclass(frozen=True)
class Preference(Example):
    """Responses to one prompt that are judged: one against the other, or by their scores."""

    margin: float = 0.0
    """By how much the first response is better than the second."""
    targets: Tensor | None = None
    """[K], the scores of the objectives, NaN where one is missing."""


def response_lengths(examples: Sequence[Example]) -> Tensor:
    """[N, K], tokens of each response, as float32."""
    return torch.tensor([[len(s) - e.prompt_length for s in e.sequences] for e in examples]).float()


class PreferenceBatch(ExampleBatch[Preference]):
    """B pairs, or scored responses."""

    @property
    def margins(self) -> Tensor:
        """[B]"""
        return torch.tensor([example.margin for example in self.examples])

    @property
    def targets(self) -> Tensor:
        """[B, K]"""
        return torch.stack([e.targets for e in self.examples if e.targets is not None])


class PreferenceRows(ExampleDataset[Preference]):
    """Pairs and scored responses as a file has them.

    Args:
        rows: ``(where, item)``: where it stands, and a ``Pair`` or a ``Scored``.
        tokenizer, limits, on_error: as of ``ExampleDataset``.
        close: see ``encode``.
        problems: sentences on rows that were given up before.
    """

    batch_class: ClassVar = PreferenceBatch

    def __init__(
        self,
        rows: Sequence[tuple[str, Pair | Scored]],
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        *,
        close: bool,
        on_error: str,
        problems: Sequence[str] = (),
    ) -> None:
        self.close, told = close, list(problems)
        made = _made(rows, tokenizer, limits, close, told)
        super().__init__(made, tokenizer, limits, on_error=on_error, problems=told)

    def totals(self, rows: Sequence[int]) -> dict[str, float]:
        chosen = [self.examples[r] for r in rows]
        responses = sum(len(e.sequences[0]) - e.starts[0] for e in chosen)
        return super().totals(rows) | {
            "num_response_tokens": float(responses),
            "num_text_tokens": float(sum(len(e.sequences[0]) - 1 for e in chosen)),
        }


class PreferenceDataset(PreferenceRows):
    """Prompts with a chosen and a rejected response, tokenized once.

    Args:
        prompts: text or messages; None: what both sides begin with.
        chosen, rejected: text or messages.
        tokenizer: of the model that is trained.
        max_length: most tokens of prompt and response together; the response is cut on the right,
            its end token kept.
        max_prompt_length: most tokens of the prompt; it is cut on the left.
        margins: by how much the chosen response is better; default 0.
        close: see ``encode``; False for a reward model.
        on_error: ``raise``, or ``skip`` pairs that cannot be learned from.

    Raises:
        ValueError: lists of different lengths, or no pair at all; a pair whose sides are equal or
            whose response is empty, be it by truncation.
    """

    def __init__(
        self,
        prompts: Sequence[Any] | None,
        chosen: Sequence[Any],
        rejected: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 512,
        max_prompt_length: int = 256,
        *,
        margins: Sequence[float | None] | None = None,
        close: bool = True,
        on_error: str = "raise",
    ) -> None:
        columns = {"prompts": prompts, "rejected": rejected, "margins": margins}
        for name, column in columns.items():
            if column is not None and len(column) != len(chosen):
                raise ValueError(f"{name} has {len(column)} rows, chosen has {len(chosen)}")
        pairs, problems = [], []
        for i in range(len(chosen)):
            row = {"chosen": chosen[i], "rejected": rejected[i]}
            try:
                row |= {} if prompts is None else {"prompt": as_prompt(prompts[i]).content}
                row |= {} if margins is None else {"margin": margins[i]}
                pairs.append((f"pair {i + 1}", as_pair(row)))
            except ValueError as error:
                problems.append(f"pair {i + 1}: {error}")
        limits = Limits(max_length, max_prompt_length)
        super().__init__(
            pairs, tokenizer, limits, close=close, on_error=on_error, problems=problems
        )


def _made(
    rows: Sequence[tuple[str, Pair | Scored]],
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    close: bool,
    problems: list[str],
) -> Iterator[tuple[str, Pair | Scored, Preference]]:
    """Items with their examples; why there is none goes to ``problems``."""
    usable, texts = [], []
    for where, item in [(where, to_the_token(tokenizer, item)) for where, item in rows]:
        try:
            texts += render_all(tokenizer, item.prompt, item.responses)
            usable.append((where, item))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    found = fitted(tokenizer, texts, limits, close)
    for where, item in usable:
        sides = [next(found) for _ in item.responses]
        responses = [side.response for side in sides]
        if problem := _unusable(tokenizer, limits, sides[0].prompt, responses):
            problems.append(f"{where}: {problem}")
        else:
            yield where, item, _example(item, sides)


def _example(item: Pair | Scored, sides: Sequence[Fitted]) -> Preference:
    prompt, cut = sides[0].prompt, tuple(side.cut_response for side in sides)
    sequences = tuple(torch.cat([prompt, side.response]) for side in sides)
    if isinstance(item, Pair):
        said: dict[str, Any] = {"margin": item.margin or 0.0}
    else:
        said = {"targets": torch.tensor([math.nan if t is None else t for t in item.targets])}
    return Preference(
        sequences, len(prompt), cut_prompt=sides[0].cut_prompt, cut_responses=cut, **said
    )


def _unusable(
    tokenizer: PreTrainedTokenizerBase, limits: Limits, prompt: Tensor, responses: Sequence[Tensor]
) -> str | None:
    """Why an example cannot be learned from; None if it can."""
    names = ("chosen", "rejected") if len(responses) == 2 else ("",)
    for name, response in zip(names, responses, strict=True):
        if says_nothing(tokenizer, response):
            return (
                f"the {name} response is empty once the text is cut to"
                f" max_length={limits.max_length} (its prompt to {limits.max_prompt_length})"
            ).replace("  ", " ")
    if len(responses) == 2 and torch.equal(*responses):
        if len(prompt) + len(responses[0]) < limits.max_length:
            return "chosen and rejected are equal once they are tokens"
        return (
            f"chosen and rejected are equal in their first {len(responses[0])} tokens, all that"
            f" max_length={limits.max_length} leaves: raise it"
        )
    return None
