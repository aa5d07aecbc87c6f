"""Which column of a row holds what, and what becomes of the others: used, unused, or refused."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NAMES = ("prompt", "chosen", "rejected", "margin", "response", "messages", "instruction", "input",
         "system", "history", "tools")  # fmt: skip
"""What ``data.columns`` can give a column to be."""
SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history", "chat_history", "conversation_history")
PROMPTS = ("prompt", "question", "instruction", "messages", "conversations", "conversation", "text",
           "query", "input")  # fmt: skip
"""Where a prompt stands, the first that says something."""
RENAMED = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
"""OpenAI's names."""
TEXT = {*NAMES, *PROMPTS, *SYSTEM, *HISTORY, *RENAMED, "completion", "output"} - {"margin"}
"""Columns of tables whose numbers are words."""
OF_PROMPTS = {*PROMPTS, *SYSTEM, *HISTORY,
    "sys", "dialog", "dialogue", "dialogs", "context", "contexts", "inputs", "instructions",
    "prompts", "user", "user_prompt", "user_message", "user_input", "document", "documents",
    "passage", "passages", "article", "background", "knowledge", "persona", "scenario", "example",
    "examples", "few_shot", "demonstrations", "tools", "functions", "image", "images", "audio",
    "audios", "video", "videos", "prefix", "suffix"}  # fmt: skip
"""Names of columns that are a part of what the model is asked, where they say something."""
ADDED = (OF_PROMPTS - {*PROMPTS}) | {"instruction", "input"}
"""Those that add to a prompt; others are another prompt, which may be there for a reward."""
REMARK = re.compile(
    r"(?:^|_)(?:ids?|idx|index|u?uid|hash|key|sources?|src|datasets?|subset|split|origin|scores?"
    r"|ratings?|rank|labels?|models?|categor(?:y|ies)|tags?|types?|kind|topic|lang(?:uage)?|date"
    r"|time(?:stamp)?|created|url|license|version|author|annotators?|annotations?|meta(?:data)?"
    r"|info|turns?|length|tokens|count|reasons?|rationale|explanation|feedback|comments?|notes?"
    r"|critique|judge(?:ment)?|finish|status|quality|difficulty|level|task|name|generat(?:or|ions)"
    r"|order|agreement|winner|preference|strength|log(?:p|probs?))(?:_|$)"
)
"""Names of columns that say something about a row."""


@dataclass(frozen=True)
class Columns:
    """What became of the columns of a file, in their order."""

    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass
class Reading:
    """What was read of a file, to be looked at."""

    path: str
    rows: int = 0
    """All that there are, those left out included."""
    skipped: list[str] = field(default_factory=list)
    """Rows that were left out, and why: a sentence each, with file and line."""
    places: list[str] = field(default_factory=list)
    """File and line of each row that is used."""
    notes: list[str] = field(default_factory=list)
    """What is suspicious, or was chosen for the user."""
    seen: dict[str, bool] = field(default_factory=dict)
    """Column -> whether any row used it."""
    others: str = "that are not used"
    """What becomes of columns that no row used."""

    def note(self, cells: "Cells") -> None:
        """Take note of a row's columns."""
        for name in cells.row:
            self.seen[name] = self.seen.get(name, False) or name in cells.used

    @property
    def columns(self) -> Columns:
        used = tuple(name for name, is_used in self.seen.items() if is_used)
        return Columns(used, tuple(name for name in self.seen if name not in used))

    def __str__(self) -> str:
        """The columns that no row used, and what was noted; empty where there is nothing."""
        unused = ", ".join(self.columns.unused)
        lines = [f"{self.path}: columns {self.others}: {unused}"] if unused else []
        return "\n".join([*lines, *(f"{self.path}: {note}" for note in self.notes)])


class Cells:
    """A row by what its cells are to us; remembers which of them were read.

    Args:
        row: column -> value.
        columns: what is called otherwise than here: ``{"prompt": "frage"}``; None for a column
            that is not meant.
    """

    def __init__(self, row: Any, columns: Mapping[str, str | None] | None = None) -> None:
        if not isinstance(row, Mapping):
            raise ValueError(f"a row must be an object with columns, not {type(row).__name__}")
        self.row = {str(name): value for name, value in row.items()}
        self.columns = columns or {}
        self.names = {name: name for name in self.row}  # ours -> the file's
        if set(RENAMED) <= set(self.row):
            self.names |= {ours: name for name, ours in RENAMED.items()}
        for ours, name in self.columns.items():
            self.names.pop(ours, None)
            if name is not None:
                self.names[ours] = name
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.names and self.names[name] in self.row

    def peek(self, name: str) -> Any:
        """The cell; None where it is missing or says nothing."""
        value = self.row.get(self.names.get(name, ""))
        value = value.tolist() if hasattr(value, "tolist") else value  # numpy's
        return None if says_nothing(value) else value

    def take(self, *names: str) -> Any:
        """The first cell that says something, which is read by that; None if none does."""
        for name in names:
            if (value := self.peek(name)) is not None:
                self.used.add(self.names[name])
                return value
        return None

    def require(self, *names: str) -> Any:
        """The first column that there is, read by that, whatever it says.

        Raises:
            ValueError: there is none.
        """
        for name in names:
            if name in self:
                self.used.add(self.names[name])
                value = self.row[self.names[name]]
                return value.tolist() if hasattr(value, "tolist") else value
        called = self.names.get(names[0], names[0])
        raise ValueError(
            f"there is no column {called!r}; there are {sorted(self.row)}: data.columns={{"
            f"{names[0]}: NAME}} says which one it is"
        )

    def given(self, name: str) -> bool:
        """Whether ``data.columns`` says which column that is."""
        return self.columns.get(name) is not None

    def left(self) -> dict[str, Any]:
        """Columns that say something, were not read, and are not said to be left out."""
        meant = {ours for ours, name in self.columns.items() if name is None}
        overruled = {ours for ours in self.columns if self.given(ours)}
        out = self.used | meant | overruled
        return {n: v for n, v in self.row.items() if n not in out and not says_nothing(v)}

    def refuse_left(self, said: Collection[str], *, whole: bool) -> None:
        """
        Args:
            said: texts of prompt and responses: a column that repeats them adds nothing.
            whole: the prompt stood in a column of its own, so others are about the row.

        Raises:
            ValueError: a column that was not read may be a part of the prompt.
        """
        lost = [n for n, value in self.left().items() if _may_ask(n, value, whole=whole)]
        lost = [n for n in lost if not all(_is_said(t, said) for t in texts_of(self.row[n]))]
        if lost:
            raise ValueError(unread(lost, "input" if whole else "prompt"))


def unread(lost: Sequence[str], as_what: str) -> str:
    """Why columns are refused that a prompt may need.

    Args:
        as_what: the likeliest of the names that ``data.columns`` gives.
    """
    one, each = lost[0], "" if len(lost) == 1 else " (each of them)"
    return (
        f"what {', '.join(map(repr, lost))} says{each} would not be read: name what it is, as"
        f" data.columns={{{as_what}: {one}}} (there are prompt, {', '.join(NAMES[5:])}); or leave"
        f" it out by data.columns={{{one}: null}}"
    )


def says_nothing(value: Any) -> bool:
    """Whether a cell is missing: null, NaN, blank, or an empty list or object."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    if isinstance(value, float):
        return value != value
    return isinstance(value, list | tuple | dict) and not value


def texts_of(value: Any) -> Iterator[str]:
    """The words in a cell: of messages what they say, not their roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in ("role", "from", "type"):
                yield from texts_of(part)
    elif isinstance(value, Iterable):
        for part in value:
            yield from texts_of(part)


def check_columns(columns: Mapping[str, str | None] | None, names: Collection[str] = NAMES) -> None:
    """
    Raises:
        ValueError: ``data.columns`` names what no row is read for, or one column twice.
    """
    given = {ours: name for ours, name in (columns or {}).items() if name is not None}
    for ours, name in given.items():
        if ours not in names or not isinstance(name, str):
            raise ValueError(
                f"data.columns={{{ours}: {name}}}: nothing is read as {ours!r}, but"
                f" {', '.join(names)}; a column is left out by {{{ours}: null}}"
            )
    twice = [name for name, count in Counter(given.values()).items() if count > 1]
    if twice:
        raise ValueError(f"data.columns gives the column {twice[0]!r} two meanings")


def require_columns(columns: Mapping[str, str | None] | None, reading: Reading) -> None:
    """
    Raises:
        ValueError: ``data.columns`` names a column that no row has.
    """
    for ours, name in (columns or {}).items():
        wanted = ours if name is None else name
        if reading.seen and wanted not in reading.seen:
            raise ValueError(
                f"data.columns={{{ours}: {'null' if name is None else name}}}: no row of"
                f" {reading.path!r} has a column {wanted!r}; there are {', '.join(reading.seen)}"
            )


def _may_ask(name: str, value: Any, *, whole: bool) -> bool:
    plain = re.sub(r"\W+", "_", name).lower()
    if plain in OF_PROMPTS:
        return any(texts_of(value)) or not isinstance(value, bool | int | float)
    return not whole and not REMARK.search(plain) and any(texts_of(value))


def _is_said(text: str, said: Collection[str]) -> bool:
    return not text.strip() or any(text.strip() == other.strip() for other in said)
