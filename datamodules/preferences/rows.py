"""Preference pairs as people write them down: rows -> ``Pair`` and ``Scored``.

Formats are TRL's, with prompts as ``datamodules.text.layouts`` reads them. Explicit prompt: in a
column beside ``chosen`` and ``rejected``. Implicit prompt: what both begin with, messages or
characters. Each side is plain text, a list of messages, or one message.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.examples.responses import (
    answer_in,
    explicit_prompt,
    require_answer,
    response_in,
    shared_by,
    shown,
    with_prompt,
)
from datamodules.text.columns import PROMPTS, Cells, texts_of
from datamodules.text.layouts import (
    CONVERSATIONS,
    column_of,
    content_of,
    framed,
    makes_conversations,
)
from datamodules.text.prompts import Content, Prompt


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse response, each text or messages."""

    prompt: Prompt
    chosen: Content
    rejected: Content
    margin: float | None = None
    """By how much the chosen response is better, where the row says so."""
    implicit: bool = field(default=False, compare=False, repr=False)
    """Whether the prompt is what both responses began with."""

    @property
    def responses(self) -> tuple[Content, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Scored:
    """A prompt with a response and its scores; None where a score is missing."""

    prompt: Prompt
    response: Content
    targets: tuple[float | None, ...]

    @property
    def responses(self) -> tuple[Content, ...]:
        return (self.response,)


def as_pair(row: Any, *, chat: bool = False) -> Pair:
    """A row with ``chosen`` and ``rejected``, and with or without a prompt and ``margin``.

    Args:
        row: columns, or ``Cells`` of them.
        chat: make a conversation of a prompt's text.

    Raises:
        ValueError: a column is missing or of the wrong kind, or may belong to the prompt and would
            not be read; a response is empty, or both sides say the same.
    """
    cells = row if isinstance(row, Cells) else Cells(row)
    sides = [response_in(cells, name) for name in ("chosen", "rejected")]
    if isinstance(sides[0], str) != isinstance(sides[1], str):
        raise ValueError("'chosen' and 'rejected' must both be text, or both be messages")
    if sides[0] == sides[1]:
        raise ValueError("'chosen' and 'rejected' are equal, so there is nothing to prefer")
    margin = _number(cells.require("margin"), "margin") if "margin" in cells else None
    whole = _whole_conversation(cells, sides)
    prompt = None if whole else explicit_prompt(cells, chat=chat, text=isinstance(sides[0], str))
    said, explicit = [*texts_of(sides)], prompt is not None
    if prompt is None:
        if not whole:
            _require_no_gap(cells, sides)
        prompt, chosen, rejected = split_common(*sides)
        prompt = _framed(prompt, cells)
    else:
        said += texts_of(prompt.content)
        prompt, chosen, rejected = with_prompt(prompt, *sides)
    if isinstance(prompt.content, list) and not any(t.strip() for t in texts_of(prompt.content)):
        raise ValueError("the prompt says nothing")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        require_answer(side, name, prompt)
    told = explicit or isinstance(prompt.content, list)  # a text may begin alike by chance
    cells.refuse_left([*said, *whole], whole=told and bool(prompt.content))
    return Pair(prompt, chosen, rejected, margin, implicit=not explicit)


def as_scored(row: Any, objectives: Sequence[str], *, chat: bool = False) -> Scored:
    """A row with a prompt, ``response`` and a column for each objective.

    Raises:
        ValueError: a column is missing, or may belong to the prompt and would not be read; the
            response is empty, or no objective has a score.
    """
    cells = row if isinstance(row, Cells) else Cells(row)
    given, prompt, response = answer_in(cells, chat=chat)
    for name in objectives:
        if name not in cells:
            raise ValueError(
                f"there is no column {name!r}; there are {sorted(cells.row)}:"
                " name the columns that hold scores in data.objectives"
            )
    targets = tuple(_number(cells.require(name), name) for name in objectives)
    if all(target is None for target in targets):
        raise ValueError(f"no objective has a score ({', '.join(objectives)})")
    cells.refuse_left([*texts_of(given.content), *texts_of(response)], whole=True)
    return Scored(prompt, response, targets)


def split_common(chosen: Content, rejected: Content) -> tuple[Prompt, Content, Content]:
    """The prompt that both sides begin with, and what each side says after it.

    As ``extract_prompt`` of TRL 1.16: all that is equal, to the character, but for one space, which
    is the response's; and of a side that the other begins with, the last character.

    Raises:
        ValueError: conversations that begin with different messages.
    """
    shared = shared_by(chosen, rejected)
    if isinstance(chosen, str):
        if shared == min(len(chosen), len(rejected)):
            shared = max(shared - 1, 0)
        elif shared and chosen[shared - 1] == " ":
            shared -= 1
    elif not shared and chosen and rejected:
        raise ValueError(
            f"'chosen' begins with {shown(chosen[0])} and 'rejected' with {shown(rejected[0])}:"
            " they have no prompt in common, so give it in a column 'prompt'"
        )
    return Prompt(chosen[:shared]), chosen[shared:], rejected[shared:]


def _require_no_gap(cells: Cells, sides: Sequence[Content]) -> None:
    """
    Raises:
        ValueError: texts, and a column for their prompt that is empty. (TRL has ``prompt`` empty
            where the prompt is what both sides begin with.)
    """
    column = column_of(cells)
    others = [name for name in PROMPTS if cells.peek(name) is not None]
    if column is not None and isinstance(sides[0], str) and (column != "prompt" or others):
        raise ValueError(f"the column {cells.names[column]!r} is empty")


def _whole_conversation(cells: Cells, sides: Sequence[Content]) -> list[str]:
    """What a column says that repeats a whole side, as UltraFeedback's ``messages`` do; it is no
    prompt."""
    if cells.peek("prompt") is not None or isinstance(sides[0], str):
        return []
    for name in CONVERSATIONS:
        value = cells.peek(name)
        if value is not None and content_of(value, name) in sides:
            return [*texts_of(content_of(value, name))]
    return []


def _framed(prompt: Prompt, cells: Cells) -> Prompt:
    """An implicit prompt with what other columns add to it.

    Raises:
        ValueError: a text has no place for it.
    """
    if isinstance(prompt.content, str) and makes_conversations(cells):
        raise ValueError(
            "system, history and tools stand beside a conversation or a prompt in a column of its"
            " own, and here the prompt is what both texts begin with: give it in a column 'prompt'"
        )
    return framed(prompt.content, cells)


def _number(value: Any, name: str) -> float | None:
    """``value`` as a number; None where it is missing (null, an empty cell, NaN)."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}={str(value)[:40]!r} is no number") from None
    if math.isinf(number):
        raise ValueError(f"{name}={value!r} must be finite")
    return None if math.isnan(number) else number
