"""Text as tokens: alone, or behind other tokens, so that both together decode to the whole text.

Tokenizers treat the beginning of a text in their own way: SentencePiece and Metaspace put a space
before it, WordPiece takes it for the beginning of a word. What goes on is therefore tokenized
behind something (an anchor), whose tokens are then taken away; that it was done right is seen by
decoding.
"""

from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from datamodules.ends import special_once
from datamodules.text.controls import is_marked, pieces, readable

ANCHORS = ("\n", ".", " ", "(", *"azeix059", "é")
"""Texts behind which others are tokenized."""
_TAIL = 12
"""Characters of what came before that serve as an anchor, and tokens that are decoded."""
Encode = Callable[[str], list[int]]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], plain: Sequence[bool]
) -> list[list[int]]:
    """Ids of every distinct text once; a fast tokenizer spreads a call over all cores.

    Args:
        plain: which texts get the tokenizer's own special tokens, where they lack them. A chat
            template has written its own, and what it marked is text (``controls``).
    """
    ids: dict[tuple[str, bool], list[int]] = {}
    for special in (True, False):
        wanted = {t for t, p in zip(texts, plain, strict=True) if p is special}
        if not special:
            ids |= {(t, special): _pieced(tokenizer, t) for t in wanted if is_marked(t)}
            wanted = {text for text in wanted if not is_marked(text)}
        if wanted:
            order = sorted(wanted)
            encoded = tokenizer(order, add_special_tokens=special)["input_ids"]
            if special:
                rows = zip(order, encoded, strict=True)
                encoded = [special_once(tokenizer, text, row) for text, row in rows]
            ids |= {(text, special): row for text, row in zip(order, encoded, strict=True)}
    return [ids[text, special] for text, special in zip(texts, plain, strict=True)]


def tokenize_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of what a chat template wrote."""
    return tokenize(tokenizer, [text], [False])[0]


def going_on(
    tokenizer: PreTrainedTokenizerBase, before: Sequence[int], start: str, text: str, whole: str
) -> list[int]:
    """Ids of ``text``, to stand behind the ids ``before``.

    Args:
        start: the text of ``before``.
        whole: what both together should decode to.
    """
    if is_marked(text):
        return _pieced(tokenizer, text, before, readable(start))
    return _fitting(tokenizer, _encoder(tokenizer), before, readable(start), text, whole)


def _candidates(encode: Encode, start: str, text: str) -> Iterator[list[int]]:
    """Ids of ``text`` alone and behind every anchor."""
    yield encode(text)
    tails = [start[-n:] for n in (_TAIL, 4, 2, 1) if start]
    for anchor in (*tails, *ANCHORS):
        head, ids = encode(anchor), encode(anchor + text)
        if ids[: len(head)] == head:
            yield ids[len(head) :]


def _pieced(
    tokenizer: PreTrainedTokenizerBase, text: str, before: Sequence[int] = (), start: str = ""
) -> list[int]:
    """Ids of a text in which marked special tokens are words, to stand behind ``before``."""
    ids = list(before)
    for piece, is_word in pieces(text):
        ids, start = ids + _next(tokenizer, ids, start, piece, is_word), piece
    return ids[len(before) :]


def _next(
    tokenizer: PreTrainedTokenizerBase, before: list[int], start: str, piece: str, is_word: bool
) -> list[int]:
    encode, tail = (_as_words if is_word else _encoder)(tokenizer), before[-_TAIL:]
    if not before:
        ids = encode(piece)
    else:
        whole = decoded(tokenizer, tail) + piece
        ids = _fitting(tokenizer, encode, tail, start, piece, whole)
    if not is_word or tokenizer.added_tokens_encoder.get(piece) not in ids:
        return ids
    if len(piece) == 1:
        raise ValueError(
            f"a message holds {piece!r}, which the tokenizer has as a special token only: take it"
            " out of the row"
        )
    first = _next(tokenizer, before, start, piece[0], True)  # its vocabulary holds it as a word too
    return first + _next(tokenizer, before + first, piece[0], piece[1:], True)


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    encode: Encode,
    before: Sequence[int],
    start: str,
    text: str,
    whole: str,
) -> list[int]:
    """The first candidate that decodes as wanted, or else simply the first."""
    first = None
    for ids in _candidates(encode, start, text):
        first = ids if first is None else first
        if decoded(tokenizer, [*before, *ids]) == whole:
            return ids
    return first or []


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def _as_words(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Ids of a text in which nothing is a special token."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        slow = {"add_special_tokens": False, "split_special_tokens": True}
        return lambda text: tokenizer(text, **slow)["input_ids"]

    def encode(text: str) -> list[int]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    return encode


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of ``ids``, every token shown."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
