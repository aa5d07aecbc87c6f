"""Unpaired preferences as people write them down: rows -> ``Labelled``.

Formats are TRL's, with prompts as ``datamodules.text.layouts`` reads them: a prompt, its completion
and a ``label``. A pair is two such rows: its chosen side is desirable, its rejected one is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.examples.responses import RESPONSES, answer_in
from datamodules.preferences.rows import Pair, as_pair
from datamodules.text.columns import Cells, Reading, texts_of
from datamodules.text.layouts import makes_conversations
from datamodules.text.prompts import Content, Prompt

NAMES = ("prompt", "completion", "response", "label", "chosen", "rejected", "messages",
         "instruction", "input", "system", "history", "tools")  # fmt: skip
"""What ``data.columns`` can give a column to be."""
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""Labels as files have them -> whether the response is desirable."""


@dataclass(frozen=True)
class Labelled:
    """A prompt and a response that is desirable, or is not."""

    prompt: Prompt
    response: Content
    is_desirable: bool
    pair: Pair | None = field(default=None, compare=False, repr=False)
    """Whose side it is; where its prompt ends is known once there is a tokenizer."""

    @classmethod
    def of(cls, pair: Pair, is_desirable: bool) -> "Labelled":
        """A side of a pair."""
        said = pair.chosen if is_desirable else pair.rejected
        return cls(pair.prompt, said, is_desirable, pair)

    @property
    def responses(self) -> tuple[Content, ...]:
        return (self.response,)


def as_labelled(row: Any, *, chat: bool = False) -> list[Labelled]:
    """What a row says: one response with its label, or both of a pair.

    Args:
        row: columns, or ``Cells`` of them.
        chat: make a conversation of a prompt's text.

    Raises:
        ValueError: a column is missing or of the wrong kind, or may belong to the prompt and would
            not be read; the response is empty, or the label says neither.
    """
    cells = row if isinstance(row, Cells) else Cells(row)
    if "chosen" in cells and "label" not in cells:
        pair = as_pair(cells, chat=chat)
        return [Labelled.of(pair, True), Labelled.of(pair, False)]
    names = ("completion", *(name for name in RESPONSES if name != "completion"))
    given, prompt, response = answer_in(cells, chat=chat, names=names)
    label = cells.require("label")
    said = TRUTHS.get(str(label).strip().lower())
    if said is None:
        raise ValueError(
            f"label={str(label)[:40]!r} must be true or false (or 1 or 0): whether the response is"
            " desirable"
        )
    cells.refuse_left([*texts_of(given.content), *texts_of(response)], whole=True)
    return [Labelled(prompt, response, said)]


def read_labelled(
    rows: Sequence[tuple[str, Cells]], problems: list[str], reading: Reading
) -> list[tuple[str, Labelled]]:
    """What the rows say; why one says nothing goes to ``problems``, remarks to ``reading``."""
    chat = any(makes_conversations(cells) for _, cells in rows)
    items: list[tuple[str, Labelled]] = []
    pairs = 0
    for where, cells in rows:
        try:
            said = as_labelled(cells, chat=chat)
            items += [(where, item) for item in said]
            pairs += len(said) > 1
        except ValueError as error:
            problems.append(f"{where}: {error}")
        reading.note(cells)
    if pairs:
        reading.notes.append(f"{pairs} rows are pairs: each is a desirable response and another")
    return items
