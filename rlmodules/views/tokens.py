"""Tokens coloured by what they are, in a terminal (rich); in HTML by ``templates/tokens.html``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a page is written without it
    from transformers import PreTrainedTokenizerBase

KINDS = {
    # kind: (what it says of a token, how a terminal shows it)
    "prompt": ("prompt", "cyan"),
    "response": ("response, which is learned from", "green"),
    "environment": ("written by the environment", "yellow"),
    "cut": ("cut off", "red strike"),
}
UNFINISHED = "\ufffd"
"""What a tokenizer prints of half a character."""


@dataclass(frozen=True)
class Token:
    """A token as it is shown."""

    id: int
    text: str
    """What it adds to the text before it; empty where it ends in half a character."""
    kind: str
    """One of ``KINDS``."""
    special: bool = False
    """It stands for no text: the tokenizer's own."""
    notes: tuple[str, ...] = ()
    """What else there is to say of it."""

    @property
    def shown(self) -> str:
        """``text`` with whitespace that can be seen."""
        return self.text.replace("\n", "⏎\n").replace("\t", "⇥\t")


def tokens_of(
    tokenizer: "PreTrainedTokenizerBase",
    ids: Sequence[int],
    kinds: Sequence[str],
    notes: Sequence[Sequence[str]] = (),
) -> list[Token]:
    """The tokens of one text [T], of which ``kinds`` [T] says what they are."""
    special = set(tokenizer.all_special_ids)
    texts = pieces(tokenizer, ids)
    more = notes or [()] * len(ids)
    rows = zip(ids, texts, kinds, more, strict=True)
    return [Token(i, text, kind, i in special, tuple(note)) for i, text, kind, note in rows]


def pieces(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; all of them together are the text.

    Each is read behind the one before it, because many tokenizers drop a space at the start. A
    character of several tokens is the last one's.
    """
    found: list[str] = []
    start = read = 0
    for end in range(1, len(ids) + 1):
        known, text = (_decoded(tokenizer, ids[start:to]) for to in (read, end))
        if text.endswith(UNFINISHED) and end < len(ids):
            found.append("")
            continue
        found.append(text[len(known) :])
        start, read = read, end
    return found


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(ids), **options))


def segments(tokens: Sequence[Token]) -> Iterator[tuple[str, list[Token]]]:
    """Neighbours of one kind."""
    for kind, group in groupby(tokens, key=lambda token: token.kind):
        yield kind, list(group)


def as_table(tokens: Sequence[Token], title: str = "") -> Table:
    """A row a segment, which says by a word what it is: colours do not reach every terminal."""
    table = Table(title=title or None, title_justify="left", show_header=False, show_lines=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for kind, group in segments(tokens):
        name = f"{kind}\n{len(group)} token{'s' if len(group) > 1 else ''}"
        table.add_row(Text(name, KINDS[kind][1].split()[0]), as_text(group))
    return table


def as_text(tokens: Sequence[Token]) -> Text:
    """The text of ``tokens``, every second one underlined, so that each can be told apart."""
    text = Text()
    for number, token in enumerate(tokens):
        style = KINDS[token.kind][1] + (" underline" if number % 2 else "")
        text.append(printable(token.shown), f"{style} bold" if token.special else style)
    return text


def printable(text: str) -> str:
    """``text`` without what a terminal would obey."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
