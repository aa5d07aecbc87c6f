"""The tokens that end a response: one set for sampling, environments, pairs and exports.

It holds the tokenizer's end token, the one that ends the assistant's turn in its chat template, and
those that the model's ``generation_config`` names. Many instruction-tuned models write another one
than ``tokenizer.eos_token``: Gemma ``<end_of_turn>``, Phi ``<|end|>``, GLM one of three.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from datamodules.templates import RESPONSE, render_chat

_MODEL_ENDS = "_model_ends"
"""Attribute of a tokenizer: the end tokens that its model names."""
_turn_ends: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, int | None]] = WeakKeyDictionary()


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a response; empty where nothing names one."""
    ids = {tokenizer.eos_token_id, turn_end(tokenizer), *model_ends(tokenizer)}
    return frozenset(i for i in ids if i is not None)


def model_ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ``note_model_ends`` noted."""
    return vars(tokenizer).get(_MODEL_ENDS, ())


def note_model_ends(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> None:
    """Have ``tokenizer`` know the end tokens that its model names; no tokenizer's file does."""
    setattr(tokenizer, _MODEL_ENDS, tuple(ids))


def closing_id(tokenizer: PreTrainedTokenizerBase, *, plain: bool) -> int | None:
    """The end token that is written behind a response which has none; None where none is known.

    Args:
        plain: text, which the tokenizer's end token ends; an assistant's turn ends as its chat
            template ends it.
    """
    first = (tokenizer.eos_token_id, turn_end(tokenizer))
    ordered = (*(first if plain else reversed(first)), *model_ends(tokenizer))
    return next((i for i in ordered if i is not None), None)


def before_end(tokenizer: PreTrainedTokenizerBase, response: Sequence[int]) -> list[int]:
    """The ids of a response before its first end token."""
    ends = end_ids(tokenizer)
    return list(itertools.takewhile(lambda token: token not in ends, response))


def opened(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text that is to be continued: some tokenizers close every text."""
    ids = special_once(tokenizer, text, tokenizer(text)["input_ids"])
    closed = ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
    return ids[:-1] if closed else ids


def special_once(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> list[int]:
    """``ids`` of ``text`` without the special tokens that the tokenizer added to its own: text
    that went through a chat template has them already."""
    if not _has_specials(tokenizer, text):
        return ids
    own: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = next((i for i in range(len(ids) - len(own) + 1) if ids[i : i + len(own)] == own), None)
    if before is None or not own:
        return ids
    opens, closes = ids[:before], ids[before + len(own) :]
    said = [i for i in own if tokenizer.decode([i]).strip()]
    if opens and said and opens[-1] == said[0]:
        opens = opens[:-1]
    if closes and said and closes[0] == said[-1]:
        closes = closes[1:]
    return [*opens, *own, *closes]


def _has_specials(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text begins or ends as the tokenizer's texts do."""
    begins = tuple(filter(None, (tokenizer.bos_token, tokenizer.cls_token)))
    ends = tuple(filter(None, (tokenizer.eos_token, tokenizer.sep_token)))
    return text.strip().startswith(begins) or text.strip().endswith(ends)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that the chat template writes behind an assistant's words; None where that is no
    single token of its own.

    Where a template writes nothing there (GLM's), the token that opens the next turn ends the last.
    """
    if tokenizer.chat_template is None:
        return None
    state = (str(tokenizer.chat_template), str(tokenizer.special_tokens_map))
    known = _turn_ends.get(tokenizer)
    if known is None or known[0] != state:
        known = _turn_ends[tokenizer] = (state, _found_turn_end(tokenizer))
    return known[1]


def _found_turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    asked = {"role": "user", "content": "."}
    said = {"role": "assistant", "content": RESPONSE}
    for messages in ([asked, said], [asked, said, asked]):
        try:
            text = render_chat(tokenizer, messages)
        except Exception:  # templates raise what they like
            return None
        _, found, rest = text.rpartition(RESPONSE)
        rest = rest.lstrip()
        if found and rest:
            return _opening_token(tokenizer, rest)
    return None


def _opening_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The added token that ``text`` begins with, unless it is one that opens texts."""
    added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items()}
    found = max((t for t in added if t and text.startswith(t)), key=len, default=None)
    if found is None or (found == tokenizer.bos_token != tokenizer.eos_token):
        return None
    return added[found]
