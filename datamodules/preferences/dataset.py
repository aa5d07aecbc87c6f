"""PreferenceDataset: texts -> ragged sequences of tokens, checked; what a batch holds."""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from datamodules.ends import end_ids
from datamodules.preferences.borders import to_the_token
from datamodules.preferences.rows import Pair, Scored, as_pair
from datamodules.preferences.tokenized import Fitted, fitted
from datamodules.text.cache import digest
from datamodules.text.encoding import Limits, render_all
from datamodules.text.problems import below
from datamodules.text.prompts import as_prompt


@dataclass(frozen=True)
class Example:
    """Responses to one prompt."""

    sequences: tuple[Tensor, ...]
    """Token ids of prompt and response, [T_k] each."""
    prompt_length: int
    """How many tokens of each are the prompt."""
    margin: float = 0.0
    """By how much the first response is better than the second."""
    targets: Tensor | None = None
    """[K], the scores of the objectives, NaN where one is missing."""
    cut_prompt: int = 0
    """How many tokens the prompt has lost on its left."""
    cut_responses: tuple[int, ...] = ()
    """How many tokens each response has lost on its right."""


def response_lengths(examples: Sequence[Example]) -> Tensor:
    """[N, K], tokens of each response, as float32."""
    return torch.tensor([[len(s) - e.prompt_length for s in e.sequences] for e in examples]).float()


class PreferenceBatch:
    """What one ``training_step`` takes: B examples.

    (A plain class: Lightning would look into a dataclass and, under ``precision=bf16-true``, round
    margins and targets.)

    Args:
        examples: the examples.
        rows: [B], their indices in the dataset.
        totals: what the optimizer step holds altogether (``num_pairs``, ...), divided so that
            Lightning's mean over accumulation steps and processes becomes a mean over all.
    """

    def __init__(
        self, examples: Sequence[Example], rows: Tensor, totals: dict[str, Any], split: str
    ) -> None:
        self.examples, self.rows, self.totals, self.split = list(examples), rows, totals, split

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def sequences(self) -> list[tuple[Tensor, ...]]:
        return [example.sequences for example in self.examples]

    @property
    def prompt_lengths(self) -> list[int]:
        return [example.prompt_length for example in self.examples]

    @property
    def margins(self) -> Tensor:
        """[B]"""
        return torch.tensor([example.margin for example in self.examples])

    @property
    def targets(self) -> Tensor:
        """[B, K]"""
        return torch.stack([e.targets for e in self.examples if e.targets is not None])


class ProblemRowsError(ValueError):
    """Rows that cannot be learned from; the message lists them."""


class ExampleDataset(Dataset[Example]):
    """Examples in memory, and how much of what a loss divides by each of them holds.

    Args:
        rows: ``(where, item)``: where it stands, and a ``Pair`` or a ``Scored``.
        tokenizer: of the model that is trained.
        limits: how long texts may be.
        close: see ``encode``.
        on_error: ``raise``, or ``skip`` rows that cannot be learned from.
        problems: sentences on rows that were given up before.

    Attributes:
        items, places: what the examples were made of, and where that stands.
        problems: what was left out, and why, one sentence each.

    Raises:
        ProblemRowsError: see ``report``.
    """

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
        problems, usable, texts = list(problems), [], []
        for where, item in [(where, to_the_token(tokenizer, item)) for where, item in rows]:
            try:
                texts += render_all(tokenizer, item.prompt, item.responses)
                usable.append((where, item))
            except ValueError as error:
                problems.append(f"{where}: {error}")
        self.tokenizer, self.limits, self.close = tokenizer, limits, close
        found = fitted(tokenizer, texts, limits, close)
        self.examples: list[Example] = []
        self.items: list[Pair | Scored] = []
        self.places: list[str] = []
        for where, item in usable:
            sides = [next(found) for _ in item.responses]
            responses = [side.response for side in sides]
            if problem := _unusable(tokenizer, limits, sides[0].prompt, responses):
                problems.append(f"{where}: {problem}")
            else:
                self.items.append(item)
                self.places.append(where)
                self.examples.append(_example(item, sides))
        self.problems = report(problems, len(self.examples), on_error)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def num_tokens(self, index: int) -> int:
        """All tokens of an example; what it costs to compute."""
        return sum(len(sequence) for sequence in self.examples[index].sequences)

    def totals(self, rows: Sequence[int]) -> dict[str, float]:
        """Counts over ``rows`` that losses are divided by."""
        chosen = [self.examples[r] for r in rows]
        responses = sum(len(e.sequences[0]) - max(e.prompt_length, 1) for e in chosen)
        return {
            "num_pairs": float(len(rows)),
            "num_response_tokens": float(responses),
            "num_text_tokens": float(sum(len(e.sequences[0]) - 1 for e in chosen)),
        }

    def subset(self, rows: Sequence[int]) -> "ExampleDataset":
        """The examples at ``rows``."""
        part = copy.copy(self)
        part.examples = [self.examples[row] for row in rows]
        part.items = [self.items[row] for row in rows]
        part.places = [self.places[row] for row in rows]
        part.problems = []
        return part

    def digest(self) -> str:
        """Changes with any token of any example."""
        ids = [[s.tolist() for s in e.sequences] for e in self.examples]
        return digest(ids, [e.prompt_length for e in self.examples])


class PreferenceDataset(ExampleDataset):
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


def _example(item: Pair | Scored, sides: Sequence[Fitted]) -> Example:
    prompt, cut = sides[0].prompt, tuple(side.cut_response for side in sides)
    sequences = tuple(torch.cat([prompt, side.response]) for side in sides)
    if isinstance(item, Pair):
        said: dict[str, Any] = {"margin": item.margin or 0.0}
    else:
        said = {"targets": torch.tensor([math.nan if t is None else t for t in item.targets])}
    return Example(
        sequences, len(prompt), cut_prompt=sides[0].cut_prompt, cut_responses=cut, **said
    )


def report(problems: list[str], kept: int, on_error: str) -> list[str]:
    """Refuse or warn of ``problems``, as ``on_error`` says.

    Raises:
        ValueError: there are some and ``on_error`` is ``raise``; or nothing is left.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"data.on_error={on_error!r} must be raise or skip")
    if kept and not problems:
        return problems
    total = len(problems) + kept
    what = f"{len(problems)} of {total} rows cannot be learned from:{below(problems)}"
    if not kept:
        raise ProblemRowsError(what if problems else "there are no rows to learn from")
    if on_error == "raise":
        raise ProblemRowsError(f"{what}\nMend them, or leave them out with data.on_error=skip")
    warnings.warn(what, stacklevel=3)
    return problems


def _unusable(
    tokenizer: PreTrainedTokenizerBase, limits: Limits, prompt: Tensor, responses: Sequence[Tensor]
) -> str | None:
    """Why an example cannot be learned from; None if it can."""
    others = {tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id}
    silent = end_ids(tokenizer) | others
    names = ("chosen", "rejected") if len(responses) == 2 else ("",)
    for name, response in zip(names, responses, strict=True):
        if all(int(token) in silent for token in response):
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
