"""DemonstrationDataset: texts -> token sequences, and which of their tokens the loss is of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.demonstrations.rows import Demonstration, as_demonstration
from datamodules.demonstrations.turns import assistant_spans, split_at
from datamodules.ends import closing_id, end_ids
from datamodules.examples.dataset import Example, ExampleDataset, says_nothing
from datamodules.examples.tokenized import whole_cached
from datamodules.preferences.borders import to_the_token
from datamodules.text.cache import digest
from datamodules.text.encoding import Limits, Rendered, render
from datamodules.text.prompts import as_prompt


@dataclass(frozen=True)
class Learned:
    """Which tokens the loss is of, in TRL's options (``SFTConfig``)."""

    completion_only: bool | None = None
    assistant_only: bool = False


@dataclass(frozen=True)
class Demonstrated(Example):
    """A text, and what is learned of it."""

    learned: Tensor = field(kw_only=True)
    """Places of the tokens that the loss is of, [A], in their order, at least 1."""

    @property
    def starts(self) -> tuple[int, ...]:
        """Such that as many tokens stand behind it as are learned."""
        return (len(self.sequences[0]) - len(self.learned),)


class DemonstrationRows(ExampleDataset[Demonstrated]):
    """Demonstrations as a file has them.

    Args:
        rows: ``(where, item)``: where it stands, and what it says.
        tokenizer, limits, on_error: as of ``ExampleDataset``; of the limits ``max_length`` counts.
        learned: which tokens the loss is of.
        problems: sentences on rows that were given up before.
    """

    def __init__(
        self,
        rows: Sequence[tuple[str, Demonstration]],
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        *,
        learned: Learned,
        on_error: str,
        problems: Sequence[str] = (),
    ) -> None:
        told = list(problems)
        made = _made(rows, tokenizer, limits.max_length, learned, told)
        super().__init__(made, tokenizer, limits, on_error=on_error, problems=told)

    def totals(self, rows: Sequence[int]) -> dict[str, float]:
        count = sum(len(self.examples[row].learned) for row in rows)
        return super().totals(rows) | {"num_tokens": float(count)}

    def digest(self) -> str:
        return digest(super().digest(), [e.learned.tolist() for e in self.examples])


class DemonstrationDataset(DemonstrationRows):
    """Prompts with their completions, or whole texts and conversations, tokenized once.

    Args:
        completions: text or messages; whole texts or conversations where there are no prompts.
        prompts: text or messages.
        tokenizer: of the model that is trained.
        max_length: most tokens of a text; it is cut on the right.
        completion_only_loss, assistant_only_loss: see ``SFTConfig``.
        on_error: ``raise``, or ``skip`` rows that cannot be learned from.

    Raises:
        ValueError: lists of different lengths, or no text at all; a text of which nothing would be
            learned.
    """

    def __init__(
        self,
        completions: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 1024,
        *,
        prompts: Sequence[Any] | None = None,
        completion_only_loss: bool | None = None,
        assistant_only_loss: bool = False,
        on_error: str = "raise",
    ) -> None:
        if prompts is not None and len(prompts) != len(completions):
            raise ValueError(f"prompts has {len(prompts)} rows, completions has {len(completions)}")
        items, problems = [], []
        for i, said in enumerate(completions):
            try:
                if prompts is None:
                    column = "text" if isinstance(said, str) else "messages"
                    row = {column: said}
                else:
                    row = {"prompt": as_prompt(prompts[i]).content, "completion": said}
                items.append((f"row {i + 1}", as_demonstration(row)))
            except ValueError as error:
                problems.append(f"row {i + 1}: {error}")
        learned = Learned(completion_only_loss, assistant_only_loss)
        limits = Limits(max_length, max_length - 1)
        super().__init__(
            items, tokenizer, limits, learned=learned, on_error=on_error, problems=problems
        )


def _made(
    rows: Sequence[tuple[str, Demonstration]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    learned: Learned,
    problems: list[str],
) -> Iterator[tuple[str, Demonstration, Demonstrated]]:
    """Items with their examples; why there is none goes to ``problems``."""
    usable, texts = [], []
    for where, item in rows:
        try:
            _require_told_apart(item, learned)
            if item.pair is not None:
                item = Demonstration.of(to_the_token(tokenizer, item.pair))
            texts.append(render(tokenizer, item.prompt, item.response))
            usable.append((where, item))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    close = not learned.assistant_only
    for (where, item), text, prompt, response in zip(
        usable, texts, *whole_cached(tokenizer, texts, close), strict=True
    ):
        try:
            if learned.assistant_only:
                whole = _of_turns(tokenizer, item, text, torch.cat([prompt, response]).tolist())
                if learned.completion_only is not False:
                    whole = _from(whole, len(prompt))
            else:
                first = 0 if learned.completion_only is False else len(prompt)
                ids = torch.cat([prompt, response])
                whole = ids, torch.arange(max(first, 1), len(ids))
            yield where, item, _example(tokenizer, whole, max_length)
        except ValueError as error:
            problems.append(f"{where}: {error}")


def _require_told_apart(item: Demonstration, learned: Learned) -> None:
    """
    Raises:
        ValueError: the row does not tell what alone is to be learned from the rest.
    """
    if learned.completion_only and item.is_whole:
        raise ValueError(
            "algo.completion_only_loss=true, and the row has no prompt apart from its completion:"
            " leave the option out, or give 'prompt' and 'completion'"
            " (of conversations algo.assistant_only_loss=true learns the assistant's turns)"
        )
    if learned.assistant_only and isinstance(item.response, str):
        raise ValueError(
            "algo.assistant_only_loss=true, and the row is no conversation: leave the option out,"
            " or give messages"
        )


def _of_turns(
    tokenizer: PreTrainedTokenizerBase, item: Demonstration, text: Rendered, ids: list[int]
) -> tuple[Tensor, Tensor]:
    """The text up to its assistant's last word, and where its turns' tokens stand in it."""
    asked = item.prompt.content
    assert not isinstance(item.response, str), "texts are refused before"
    messages = [*(asked if isinstance(asked, list) else ()), *item.response]
    spans = assistant_spans(tokenizer, item.prompt, messages, text.whole)
    borders = [border for span in spans for border in span]
    ids, cuts = split_at(tokenizer, text.whole, ids, borders)
    ids = ids[: cuts[-1]]
    if spans[-1][1] == len(text.whole) and ids[-1] not in end_ids(tokenizer):
        closing = closing_id(tokenizer, plain=False)
        if closing is not None:
            ids.append(closing)
            cuts[-1] += 1
    places = [torch.arange(max(a, 1), b) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    return torch.tensor(ids, dtype=torch.long), torch.cat(places)


def _from(whole: tuple[Tensor, Tensor], start: int) -> tuple[Tensor, Tensor]:
    """Of the turns, those that are the completion's."""
    ids, places = whole
    return ids, places[places >= start]


def _example(
    tokenizer: PreTrainedTokenizerBase, whole: tuple[Tensor, Tensor], max_length: int
) -> Demonstrated:
    """
    Raises:
        ValueError: nothing would be learned.
    """
    ids, places = whole
    kept, learned = ids[:max_length], places[places < max_length]
    if says_nothing(tokenizer, kept[learned]):
        why = f" once the text of {len(ids)} tokens is cut to max_length={max_length}"
        raise ValueError(f"nothing is left to learn{why if len(kept) < len(ids) else ''}")
    return Demonstrated(
        (kept,), int(learned[0]), cut_responses=(len(ids) - len(kept),), learned=learned
    )
