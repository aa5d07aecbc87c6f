"""Preference pairs as people write them down: rows -> ``Pair`` and ``Scored``.

Formats are TRL's. Explicit prompt: ``prompt``, ``chosen``, ``rejected``. Implicit prompt:
``chosen`` and ``rejected`` begin with the same messages, or the same text up to a space. Each is
plain text or a list of ``{"role": ..., "content": ...}`` messages.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.text.prompts import Content, Prompt, as_prompt


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse response, each text or messages."""

    prompt: Prompt
    chosen: Content
    rejected: Content
    margin: float | None = None
    """By how much the chosen response is better, where the row says so."""

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


def as_pair(row: Any) -> Pair:
    """A row with ``chosen`` and ``rejected``, and with or without ``prompt`` and ``margin``.

    Raises:
        ValueError: a column is missing or of the wrong kind, a response is empty, or both sides say
            the same.
    """
    row = _mapping(row)
    for name in ("chosen", "rejected"):
        _require(row, name)
    chosen, rejected = (_content(row[name], name) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("'chosen' and 'rejected' must both be text, or both be messages")
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are equal, so there is nothing to prefer")
    if row.get("prompt") is None:
        prompt, chosen, rejected = split_common(chosen, rejected)
    else:
        prompt, chosen, rejected = _with_prompt(row["prompt"], chosen, rejected)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        _require_words(side, name)
    return Pair(prompt, chosen, rejected, _number(row.get("margin"), "margin"))


def as_scored(row: Any, objectives: Sequence[str]) -> Scored:
    """A row with ``prompt``, ``response`` and a column for each objective.

    Raises:
        ValueError: a column is missing, the response is empty, or no objective has a score.
    """
    row = _mapping(row)
    _require(row, "prompt")
    _require(row, "response")
    for name in objectives:
        if name not in row:
            raise ValueError(
                f"there is no column {name!r}; there are {_names(row)}:"
                " name the columns that hold scores in data.objectives"
            )
    response = _content(row["response"], "response")
    targets = tuple(_number(row[name], name) for name in objectives)
    if all(target is None for target in targets):
        raise ValueError(f"no objective has a score ({', '.join(objectives)})")
    prompt, response, _ = _with_prompt(row["prompt"] or "", response, response)
    _require_words(response, "response")
    return Scored(prompt, response, targets)


def split_common(chosen: Content, rejected: Content) -> tuple[Prompt, Content, Content]:
    """The prompt that both sides begin with, and what each side says after it."""
    shared = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        shared += 1
    if isinstance(chosen, str):
        # Whole words: the space belongs to the response, as tokenizers attach it to the next word.
        shared = max(chosen.rfind(" ", 0, shared), 0)
    return as_prompt(chosen[:shared]), chosen[shared:], rejected[shared:]


def _with_prompt(
    prompt: Any, chosen: Content, rejected: Content
) -> tuple[Prompt, Content, Content]:
    """Prompt and responses in one form: a conversation as soon as one of them is messages."""
    content = as_prompt(prompt).content
    if isinstance(content, str) and isinstance(chosen, str):
        return Prompt(content), chosen, rejected
    start = _messages(content, "user")
    sides = [_messages(side, "assistant") for side in (chosen, rejected)]
    # Some data sets repeat the prompt in both sides, perhaps after a system message.
    shared = 0
    while shared < min(map(len, sides)) and sides[0][shared] == sides[1][shared]:
        shared += 1
    for end in range(len(start), shared + 1):
        if start and sides[0][end - len(start) : end] == start:
            return Prompt(sides[0][:end]), sides[0][end:], sides[1][end:]
    sides = [s[len(start) :] if s[: len(start)] == start else s for s in sides]
    return Prompt(start), sides[0], sides[1]


def _messages(content: Content, role: str) -> list[dict[str, str]]:
    if not isinstance(content, str):
        return content
    return [{"role": role, "content": content}] if content else []


def _mapping(row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object with columns, not {type(row).__name__}")
    return row


def _require(row: Mapping[str, Any], name: str) -> None:
    if name not in row:
        raise ValueError(f"there is no column {name!r}; there are {_names(row)}")


def _names(row: Mapping[str, Any]) -> list[str]:
    return sorted(map(str, row))


def _content(value: Any, name: str) -> Content:
    try:
        return as_prompt(value).content
    except ValueError:
        raise ValueError(
            f"{name!r} must be text or a list of messages with 'role' and 'content', not {value!r}"
        ) from None


def _require_words(side: Content, name: str) -> None:
    text = side if isinstance(side, str) else "".join(str(m["content"] or "") for m in side)
    if not text.strip():
        raise ValueError(f"the {name} response is empty")


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
