"""Demonstrations as people write them down: rows -> ``Demonstration``.

Formats are TRL's, with prompts as ``datamodules.text.layouts`` reads them: a prompt and its
completion; a conversation in ``messages`` or ``conversations``; plain ``text``. Of a preference
pair the chosen response is learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.examples.responses import RESPONSES, answer_in
from datamodules.preferences.rows import Pair, as_pair
from datamodules.text.columns import Cells, Reading, texts_of
from datamodules.text.layouts import CONVERSATIONS, column_of, makes_conversations, prompt_of
from datamodules.text.messages import Message
from datamodules.text.prompts import Content, Prompt

COMPLETIONS = ("completion", *(name for name in RESPONSES if name != "completion"), "answer")
"""Where a completion stands, the first that there is."""
NAMES = ("prompt", *COMPLETIONS, "chosen", "rejected", "messages", "text", "instruction", "input",
         "system", "history", "tools")  # fmt: skip
"""What ``data.columns`` can give a column to be."""


@dataclass(frozen=True)
class Demonstration:
    """A prompt and what the model is to answer, or a whole text or conversation.

    Attributes:
        prompt: of a whole conversation no messages, but the tools and options of its row.
        response: the completion, or the whole.
        pair: whose chosen side it is; where its prompt ends is known once there is a tokenizer.
    """

    prompt: Prompt
    response: Content
    is_whole: bool = False
    pair: Pair | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, pair: Pair) -> "Demonstration":
        """What was chosen."""
        return cls(pair.prompt, pair.chosen, pair=pair)

    @property
    def responses(self) -> tuple[Content, ...]:
        return (self.response,)


def as_demonstration(row: Any, *, chat: bool = False) -> Demonstration:
    """A row of one of the formats.

    Args:
        row: columns, or ``Cells`` of them.
        chat: make a conversation of a prompt's text.

    Raises:
        ValueError: a column is missing or of the wrong kind, or may belong to the prompt and would
            not be read; there is nothing to learn.
    """
    cells = row if isinstance(row, Cells) else Cells(row)
    if any(name in cells for name in COMPLETIONS):
        given, prompt, response = answer_in(cells, chat=chat, names=COMPLETIONS)
        cells.refuse_left([*texts_of(given.content), *texts_of(response)], whole=True)
        return Demonstration(prompt, response)
    if "chosen" in cells:
        return Demonstration.of(as_pair(cells, chat=chat))
    column = column_of(cells)
    if column not in (*CONVERSATIONS, "text"):
        raise ValueError(
            f"there is no column 'completion'; there are {sorted(cells.row)}:"
            " data.columns={completion: NAME} says which one holds what the model is to answer"
            " (data.columns={text: NAME}: which one is learned from whole)"
        )
    whole = prompt_of(cells)
    if whole is None or not any(text.strip() for text in texts_of(whole.content)):
        raise ValueError(f"the column {cells.names[column]!r} is empty")
    content = whole.content
    if not isinstance(content, str) and all(m["role"] != "assistant" for m in content):
        raise ValueError("the conversation holds no message of an assistant")
    cells.refuse_left([*texts_of(content)], whole=True)
    return Demonstration(Prompt("", whole.metadata, whole.tools), content, is_whole=True)


def prompt_for(item: Demonstration) -> Prompt | None:
    """What a model is asked that is to write as the demonstration does: of a conversation all
    before its assistant's last words; None of a plain text."""
    if not item.is_whole:
        return item.prompt if item.prompt.content else None
    if isinstance(item.response, str):
        return None
    before = item.response[: _last_turn(item.response)]
    return Prompt(before, item.prompt.metadata, item.prompt.tools) if before else None


def answer_for(item: Demonstration) -> str:
    """What it says then."""
    if isinstance(item.response, str):
        return item.response
    said = item.response[_last_turn(item.response) :] if item.is_whole else item.response
    return "\n".join(texts_of(said))


def _last_turn(messages: Sequence[Message]) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "assistant")


def read_demonstrations(
    rows: Sequence[tuple[str, Cells]], problems: list[str], reading: Reading
) -> list[tuple[str, Demonstration]]:
    """What the rows say; why one says nothing goes to ``problems``, remarks to ``reading``."""
    chat = any(makes_conversations(cells) for _, cells in rows)
    items = []
    for where, cells in rows:
        try:
            items.append((where, as_demonstration(cells, chat=chat)))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    for _, cells in rows:
        reading.note(cells)
    pairs = sum("chosen" in cells.used for _, cells in rows)
    if pairs:
        reading.notes.append(f"{pairs} rows are preferences: what was chosen is learned from")
    return items
