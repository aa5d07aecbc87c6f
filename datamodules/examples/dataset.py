"""Examples in memory: texts as ragged sequences of tokens, and what a batch of them holds."""

import copy
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from datamodules.ends import end_ids
from datamodules.text.cache import digest
from datamodules.text.encoding import Limits
from datamodules.text.problems import below


@dataclass(frozen=True)
class Example:
    """One or more responses to a prompt."""

    sequences: tuple[Tensor, ...]
    """Token ids of prompt and response, [T_k] each."""
    prompt_length: int
    """How many tokens of each are the prompt."""
    cut_prompt: int = 0
    """How many tokens the prompt has lost on its left."""
    cut_responses: tuple[int, ...] = ()
    """How many tokens each response has lost on its right."""

    @property
    def starts(self) -> tuple[int, ...]:
        """First token of each response; nothing predicts the first token of a text."""
        return (max(self.prompt_length, 1),) * len(self.sequences)


E = TypeVar("E", bound=Example)


class ExampleBatch(Generic[E]):
    """What one ``training_step`` takes: B examples.

    (A plain class: Lightning would look into a dataclass and, under ``precision=bf16-true``, round
    its numbers.)

    Args:
        examples: the examples.
        rows: [B], their indices in the dataset.
        totals: what the optimizer step holds altogether (``num_examples``, ...), divided so that
            Lightning's mean over accumulation steps and processes becomes a mean over all.
    """

    def __init__(
        self, examples: Sequence[E], rows: Tensor, totals: dict[str, Any], split: str
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


class ProblemRowsError(ValueError):
    """Rows that cannot be learned from; the message lists them."""


class ExampleDataset(Dataset[E], Generic[E]):
    """Examples in memory, and how much of what a loss divides by each of them holds.

    Args:
        made: ``(where, item, example)``: where it stands in its file, what was read there, and
            what was made of it.
        tokenizer: of the model that is trained.
        limits: how long texts may be.
        on_error: ``raise``, or ``skip`` rows that cannot be learned from.
        problems: sentences on those rows; ``made`` may add to them while it is gone through.

    Attributes:
        items, places: what the examples were made of, and where that stands.
        problems: what was left out, and why, one sentence each.

    Raises:
        ProblemRowsError: see ``report``.
    """

    batch_class: ClassVar[type[ExampleBatch[Any]]] = ExampleBatch
    smallest_batch: ClassVar[int] = 1
    """Examples that a process has of a batch, at least."""

    def __init__(
        self,
        made: Iterable[tuple[str, Any, E]],
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        *,
        on_error: str,
        problems: list[str],
    ) -> None:
        self.tokenizer, self.limits = tokenizer, limits
        kept = list(made)
        self.places: list[str] = [where for where, _, _ in kept]
        self.items: list[Any] = [item for _, item, _ in kept]
        self.examples: list[E] = [example for _, _, example in kept]
        self.problems = report(problems, len(kept), on_error)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> E:
        return self.examples[index]

    def num_tokens(self, index: int) -> int:
        """All tokens of an example; what it costs to compute."""
        return sum(len(sequence) for sequence in self.examples[index].sequences)

    def totals(self, rows: Sequence[int]) -> dict[str, float]:
        """Counts over ``rows`` that losses are divided by."""
        return {"num_examples": float(len(rows))}

    def batch(
        self, rows: Sequence[int], totals: dict[str, float], split: str, share: slice = slice(None)
    ) -> Any:
        """The examples at ``rows`` as a batch.

        Args:
            totals, split: as of ``ExampleBatch``.
            share: which of the batch's rows are this process's.
        """
        mine = list(rows[share])
        examples, places = [self[row] for row in mine], torch.tensor(mine, dtype=torch.long)
        return self.batch_class(examples, places, totals, split)

    def subset(self, rows: Sequence[int]) -> Any:
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


def says_nothing(tokenizer: PreTrainedTokenizerBase, response: Tensor) -> bool:
    """Whether there are but tokens that open and end texts."""
    others = {tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id}
    silent = end_ids(tokenizer) | others
    return all(int(token) in silent for token in response)
