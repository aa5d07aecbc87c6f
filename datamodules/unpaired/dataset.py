"""UnpairedPreferenceDataset: texts -> token sequences with labels; what a batch holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.examples.dataset import Example, ExampleBatch, ExampleDataset, says_nothing
from datamodules.examples.tokenized import fitted
from datamodules.preferences.borders import to_the_token
from datamodules.text.encoding import Limits, Rendered, render
from datamodules.text.prompts import as_prompt
from datamodules.unpaired.rows import Labelled, as_labelled


@dataclass(frozen=True)
class Judged(Example):
    """A response, and whether it is desirable."""

    is_desirable: bool = True

    @property
    def prompt(self) -> Tensor:
        return self.sequences[0][: self.prompt_length]

    @property
    def response(self) -> Tensor:
        return self.sequences[0][self.prompt_length :]


class UnpairedBatch(ExampleBatch[Judged]):
    """B responses, and for each one to another prompt.

    Args:
        others: examples of the same batch (of all processes), whose responses are put behind these
            prompts to see how far policy and reference are apart.
    """

    def __init__(self, *batch: Any, others: Sequence[Judged]) -> None:
        super().__init__(*batch)
        self.others = list(others)

    @property
    def desirable(self) -> Tensor:
        """[B], bool."""
        return torch.tensor([example.is_desirable for example in self.examples], dtype=torch.bool)

    def mismatched(self, max_length: int) -> list[Tensor]:
        """[T_i], each prompt with the response to another, cut on the right."""
        pairs = zip(self.examples, self.others, strict=True)
        return [torch.cat([mine.prompt, other.response])[:max_length] for mine, other in pairs]


class UnpairedRows(ExampleDataset[Judged]):
    """Labelled responses as a file has them.

    Args:
        rows: ``(where, item)``: where it stands, and what it says.
        tokenizer, limits, on_error: as of ``ExampleDataset``.
        problems: sentences on rows that were given up before.
    """

    smallest_batch: ClassVar = 2  # or there is no other response

    def __init__(
        self,
        rows: Sequence[tuple[str, Labelled]],
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        *,
        on_error: str,
        problems: Sequence[str] = (),
    ) -> None:
        told = list(problems)
        made = _made(rows, tokenizer, limits, told)
        super().__init__(made, tokenizer, limits, on_error=on_error, problems=told)

    @property
    def counts(self) -> tuple[int, int]:
        """Desirable responses, and others."""
        desirable = sum(example.is_desirable for example in self.examples)
        return desirable, len(self) - desirable

    def batch(
        self, rows: Sequence[int], totals: dict[str, float], split: str, share: slice = slice(None)
    ) -> UnpairedBatch:
        others = [self._other(rows, place) for place in range(len(rows))]
        mine = list(rows[share])
        return UnpairedBatch(
            [self[row] for row in mine],
            torch.tensor(mine, dtype=torch.long),
            totals,
            split,
            others=[self[row] for row in others[share]],
        )

    def _other(self, rows: Sequence[int], place: int) -> int:
        """The row before, in a circle, that answers another prompt; else the row before."""
        before = [*rows[:place][::-1], *rows[place + 1 :][::-1]]
        asked = self.items[rows[place]].prompt.content
        return next((row for row in before if self.items[row].prompt.content != asked), before[0])


class UnpairedPreferenceDataset(UnpairedRows):
    """Prompts with responses that are desirable or not, tokenized once.

    Args:
        prompts, completions: text or messages.
        labels: whether each completion is desirable.
        tokenizer: of the model that is trained.
        max_length: most tokens of prompt and completion; the completion is cut on the right, its
            end token kept.
        max_prompt_length: most tokens of the prompt; it is cut on the left.
        on_error: ``raise``, or ``skip`` rows that cannot be learned from.

    Raises:
        ValueError: lists of different lengths, or no row at all; a completion that is empty, be it
            by truncation.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        labels: Sequence[bool],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 512,
        max_prompt_length: int = 256,
        *,
        on_error: str = "raise",
    ) -> None:
        for name, column in {"completions": completions, "labels": labels}.items():
            if len(column) != len(prompts):
                raise ValueError(f"{name} has {len(column)} rows, prompts has {len(prompts)}")
        items, problems = [], []
        for i, (prompt, said, label) in enumerate(zip(prompts, completions, labels, strict=True)):
            try:
                row = {"prompt": as_prompt(prompt).content, "completion": said, "label": label}
                items += [(f"row {i + 1}", item) for item in as_labelled(row)]
            except ValueError as error:
                problems.append(f"row {i + 1}: {error}")
        limits = Limits(max_length, max_prompt_length)
        super().__init__(items, tokenizer, limits, on_error=on_error, problems=problems)


def _made(
    rows: Sequence[tuple[str, Labelled]],
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    problems: list[str],
) -> Iterator[tuple[str, Labelled, Judged]]:
    """Items with their examples; why there is none goes to ``problems``."""
    usable: list[tuple[str, Labelled]] = []
    texts: list[Rendered] = []
    for where, item in rows:
        try:
            if item.pair is not None:
                item = Labelled.of(to_the_token(tokenizer, item.pair), item.is_desirable)
            texts.append(render(tokenizer, item.prompt, item.response))
            usable.append((where, item))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    found = fitted(tokenizer, texts, limits, close=True)
    for (where, item), side in zip(usable, found, strict=True):
        if says_nothing(tokenizer, side.response):
            problems.append(
                f"{where}: the response is empty once the text is cut to"
                f" max_length={limits.max_length} (its prompt to {limits.max_prompt_length})"
            )
            continue
        whole = torch.cat([side.prompt, side.response])
        cuts = {"cut_prompt": side.cut_prompt, "cut_responses": (side.cut_response,)}
        yield (
            where,
            item,
            Judged((whole,), len(side.prompt), is_desirable=item.is_desirable, **cuts),
        )
