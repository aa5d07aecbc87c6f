"""The rows of one file as pairs or scored responses, and what is suspicious about them."""

from collections.abc import Sequence

from datamodules.preferences.rows import Pair, Scored, as_pair, as_scored
from datamodules.text.columns import Cells, Reading
from datamodules.text.layouts import column_of, makes_conversations
from datamodules.text.prompts import Content

Item = Pair | Scored


def read_items(
    rows: Sequence[tuple[str, Cells]],
    objectives: Sequence[str] | None,
    problems: list[str],
    reading: Reading,
) -> list[tuple[str, Item]]:
    """What the rows say; why one says nothing goes to ``problems``, remarks to ``reading``."""
    chat = any(makes_conversations(cells) for _, cells in rows)
    asks = any(_prompt_cell(cells) for _, cells in rows)
    items: list[tuple[str, Item]] = []
    for where, cells in rows:
        try:
            if asks and not _prompt_cell(cells) and isinstance(cells.peek("chosen"), str):
                raise ValueError("there is no prompt, as other rows have one")
            items.append((where, _item(cells, objectives, chat)))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    for _, cells in rows:
        reading.note(cells)
    reading.notes += remarks(items)
    return items


def _item(cells: Cells, objectives: Sequence[str] | None, chat: bool) -> Item:
    return as_scored(cells, objectives, chat=chat) if objectives else as_pair(cells, chat=chat)


def _prompt_cell(cells: Cells) -> bool:
    """Whether a row says what its prompt is, be it an empty text."""
    column = column_of(cells)
    return column is not None and isinstance(
        cells.row[cells.names[column]], str | list | tuple | dict
    )


def remarks(items: Sequence[tuple[str, Item]]) -> list[str]:
    """What can be learned from, but may not be what was meant; a sentence each."""
    others = [where for where, item in items if any(map(_holds_others, item.responses))]
    twice = [where for where, item in items if _repeats(item)]
    alone = [where for where, item in items if not item.prompt.content]
    said = []
    if others:
        said.append(
            f"responses of {_rows(others)} hold messages of a user, a tool or the system, which are"
            " trained as if the model had written them"
        )
    if len(twice) * 2 >= len(items) > 0:
        said.append(
            f"both sides of {_rows(twice)} begin with the text of their prompt, so that it stands"
            " there twice: data.columns={prompt: null} takes what both begin with for the prompt"
        )
    if alone:
        said.append(f"{_rows(alone)} have no prompt")
    return said


def _rows(places: Sequence[str]) -> str:
    return f"{len(places)} rows (the first is {places[0].rpartition(', ')[2]})"


def _holds_others(response: Content) -> bool:
    return not isinstance(response, str) and any(m["role"] != "assistant" for m in response)


def _repeats(item: Item) -> bool:
    asked = item.prompt.content
    return (
        isinstance(asked, str)
        and bool(asked.strip())
        and all(isinstance(side, str) and side.startswith(asked) for side in item.responses)
    )
