"""Prompts of files, each with the rest of its row, which a reward is given."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datamodules.text.columns import (
    ADDED,
    TEXT,
    Cells,
    Reading,
    check_columns,
    require_columns,
    texts_of,
    unread,
)
from datamodules.text.layouts import CONVERSATIONS, column_of, makes_conversations, prompt_of
from datamodules.text.problems import below
from datamodules.text.prompts import Prompt
from datamodules.text.tables import half_a_character, read_rows

READ = ("prompt", "messages", "instruction", "input", "system", "history", "tools")
"""What ``data.columns`` can give a column of prompts to be."""


def gather_prompts(
    given: Sequence[Any] | None, path: str | None, *, chat: bool = False, **read: Any
) -> list[Prompt]:
    """The prompts ``given``, or else those read from ``path``; see ``load_prompts``."""
    if given is None:
        assert path is not None, "one of the two is given"
        return load_prompts(path, chat=chat, **read)
    option = read.get("option", "data.path").replace("path", "prompts")
    rows = ((f"{option}, prompt {i}", row) for i, row in enumerate(given, start=1))
    options = {name: read[name] for name in ("on_error", "reading") if name in read}
    return _prompts(rows, option, {}, chat=chat, **options)


def load_prompts(
    path: str,
    *,
    column: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    split: str | None = None,
    name: str | None = None,
    chat: bool = False,
    option: str = "data.path",
    on_error: str = "raise",
    reading: Reading | None = None,
) -> list[Prompt]:
    """Read prompts from a file or a Hugging Face dataset, in any of the forms of ``layouts``.

    Args:
        path: see ``read_rows``.
        column: where the prompt stands; default ``prompt``, then ``question``, ``instruction``,
            ``messages``, ``conversations``, ``query``, ``text``.
        columns: what the file calls otherwise: ``{"prompt": "frage", "system": "rolle"}``; None for
            a column that is no part of the prompt, but the reward's alone.
        split, name: of a folder or a Hugging Face dataset, see ``read_rows``.
        chat: make each plain text the user's message of a conversation.
        option: which one gave ``path``, for errors.
        on_error: ``raise``, or ``skip`` rows that hold no prompt.
        reading: takes note of what was read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such column, an empty prompt, or no prompt at all; names file and row.
    """
    check_columns(columns, READ)
    named = dict(columns or {})
    if column is not None and named.setdefault("prompt", column) != column:
        raise ValueError(
            f"data.prompt_column={column!r} and data.columns={{prompt: {named['prompt']}}} name two"
            " columns: leave out one"
        )
    reading = Reading(path) if reading is None else reading
    text = TEXT | {name for ours, name in named.items() if name is not None}
    on_bad = reading.skipped.append if on_error == "skip" else None
    rows = read_rows(path, split, on_bad, option, name=name, text=text)
    return _prompts(
        rows, f"{option}={path!r}", named, chat=chat, on_error=on_error, reading=reading
    )


def _prompts(
    rows: Iterator[tuple[str, Any]],
    source: str,
    columns: Mapping[str, str | None],
    *,
    chat: bool,
    on_error: str = "raise",
    reading: Reading | None = None,
) -> list[Prompt]:
    reading = Reading(source) if reading is None else reading
    reading.others = "for the reward alone"
    kept = [(w, Cells(r if isinstance(r, Mapping) else {"prompt": r}, columns)) for w, r in rows]
    all_chat = chat or any(makes_conversations(cells) for _, cells in kept)
    prompts = []
    for where, cells in kept:
        try:
            if (broken := half_a_character(cells.row)) is not None:
                raise ValueError(broken)
            prompts.append(_prompt(cells, chat=all_chat))
            reading.places.append(where)
        except ValueError as error:
            if on_error == "raise":
                raise ValueError(f"{where}: {error}") from error
            reading.skipped.append(f"{where}: {error}")
        reading.note(cells)
    reading.rows = len(prompts) + len(reading.skipped)
    require_columns(columns, reading)
    if not prompts:
        raise ValueError(f"{source} holds no prompts{below(reading.skipped)}")
    if reading.skipped:
        warnings.warn(
            f"{len(reading.skipped)} rows are left out:{below(reading.skipped)}", stacklevel=3
        )
    return prompts


def _prompt(cells: Cells, *, chat: bool) -> Prompt:
    """A row's prompt, with what it did not take as metadata.

    Raises:
        ValueError: it has none, or a column that adds to the prompt would not be read.
    """
    if isinstance(given := cells.row.get("prompt"), Prompt):
        return given
    prompt = prompt_of(cells, chat=chat)
    if prompt is None:
        if (column := column_of(cells)) is not None:
            raise ValueError(f"the column {cells.names[column]!r} is empty")
        wanted = cells.names.get("prompt", "prompt")
        raise ValueError(
            f"there is no column {wanted!r}; there are {sorted(cells.row)}:"
            " name the one that holds the prompt in data.prompt_column"
        )
    lost = [name for name in cells.left() if name.lower() in ADDED]
    if lost:
        raise ValueError(f"{unread(lost, 'input')}, which leaves it to the reward")
    metadata = {name: value for name, value in cells.row.items() if name not in cells.used}
    content = prompt.content
    if isinstance(content, list) and any(cells.names.get(c) in cells.used for c in CONVERSATIONS):
        last = len(content)
        while last and content[last - 1]["role"] == "assistant":
            last -= 1
        if not last or content[last - 1]["role"] == "system":
            raise ValueError("the conversation holds no message to answer")
        if content[last:]:  # the answer that it was written down with
            metadata["completion"] = content[last:]
        content = content[:last]
    if not any(text.strip() for text in texts_of(content)):
        raise ValueError("the prompt says nothing")
    return Prompt(content, metadata | prompt.metadata, prompt.tools)
