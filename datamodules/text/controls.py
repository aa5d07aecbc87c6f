"""Special tokens that somebody wrote into what a message says, such as ``<|im_end|>``.

They are words there, and must not end a turn or open another: before the template sees them they
are put between marks, and what stands between marks is tokenized as the text it is. A plain text
keeps its special tokens, as it may have gone through a template already.

What an assistant says may hold tokens of its own (``<think>``, ``[TOOL_CALLS]``), as a policy
writes them: of it, those are marked that open and end turns and texts.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from datamodules.ends import end_ids
from datamodules.templates import ChatError, render_chat

_OPEN, _SHUT = "\U000f1a00", "\U000f1a01"
"""Marks: characters that Unicode leaves to private use."""
_MARKED = re.compile(f"{_OPEN}(.*?){_SHUT}", re.DOTALL)
Patterns = tuple[re.Pattern[str], re.Pattern[str]]
_patterns: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, Patterns]] = WeakKeyDictionary()


def disarmed(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """``messages`` with the special tokens in what they say between marks.

    Raises:
        ChatError: a special token is, or is part of, a role.
    """
    anybodys = _both(tokenizer)[0]
    for message in messages:
        if anybodys.search(message["role"]):
            raise ChatError(f"the role {message['role']!r} of a message holds a special token")
    return [_marked(of(tokenizer, message), message) for message in messages]


def disarmed_tools(
    tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """``tools`` with the special tokens in their schemas between marks."""
    return [_marked(_both(tokenizer)[0], tool) for tool in tools]


def of(tokenizer: PreTrainedTokenizerBase, message: Mapping[str, Any]) -> re.Pattern[str]:
    """What is a special token in what a message says."""
    return _both(tokenizer)[message["role"] == "assistant"]


def found_in(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The special tokens in what ``messages`` say, each as often as it stands there."""
    said = ((of(tokenizer, message), text) for message in messages for text in _texts(message))
    return [token for pattern, text in said for token in pattern.findall(text)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from (*_texts(key), *_texts(part))
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)


def doubled_in(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The tokens that open or end texts and stand twice in a row in ``ids``, as they do where a
    text was rendered by two templates."""
    tokens = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    counted = {*tokens, *end_ids(tokenizer)} - {None}
    return [tokenizer.decode([a]) for a, b in itertools.pairwise(ids) if a == b and a in counted]


def readable(text: str) -> str:
    """``text`` without marks."""
    return text.replace(_OPEN, "").replace(_SHUT, "")


def is_marked(text: str) -> bool:
    return _OPEN in text


def pieces(text: str) -> list[tuple[str, bool]]:
    """``text`` in pieces, each with whether it stood between marks."""
    parts = _MARKED.split(text)
    return [(readable(part), i % 2 == 1) for i, part in enumerate(parts) if part]


def _marked(pattern: re.Pattern[str], value: Any) -> Any:
    """``value``, which messages may hold at any depth."""
    if isinstance(value, str):
        if _OPEN in value or _SHUT in value:
            raise ChatError(
                f"a message holds the character {_OPEN!r} or {_SHUT!r} of Unicode's private use,"
                " which marks special tokens here: take it out"
            )
        return pattern.sub(lambda found: f"{_OPEN}{found[0]}{_SHUT}", value)
    if isinstance(value, Mapping):
        return {_marked(pattern, key): _marked(pattern, part) for key, part in value.items()}
    return list(map(partial(_marked, pattern), value)) if isinstance(value, list) else value


def _both(tokenizer: PreTrainedTokenizerBase) -> Patterns:
    """Special tokens in anybody's words, and in an assistant's."""
    state = (str(tokenizer.chat_template), len(tokenizer), tuple(sorted(end_ids(tokenizer))))
    known = _patterns.get(tokenizer)
    if known is None or known[0] != state:
        known = _patterns[tokenizer] = (state, _compiled(tokenizer))
    return known[1]


def _compiled(tokenizer: PreTrainedTokenizerBase) -> Patterns:
    added = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    ends = end_ids(tokenizer)
    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special} | ends
    frame = _frame(tokenizer)
    named = set(tokenizer.special_tokens_map.values())
    texts = {i: added.get(i) or tokenizer.decode([i]) for i in special}
    turns = {i: text for i, text in texts.items() if i in ends or text in named or text in frame}
    return _any_of(texts.values()), _any_of(turns.values())


def _frame(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes around a conversation in which hardly anything is said."""
    if tokenizer.chat_template is None:
        return ""
    asked, said = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
    try:
        return render_chat(tokenizer, [asked, said, {**asked, "content": "3"}])
    except ChatError:
        return ""


def _any_of(texts: Any) -> re.Pattern[str]:
    longest = sorted({text for text in texts if text.strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or "(?!)")
