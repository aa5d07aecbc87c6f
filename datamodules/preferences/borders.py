"""Where an implicit prompt ends: at a token's end, so that both responses keep their own tokens."""

from dataclasses import replace
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from datamodules.preferences.rows import Pair, Scored

Item = TypeVar("Item", bound=Pair | Scored)


def to_the_token(tokenizer: PreTrainedTokenizerBase, item: Item) -> Item:
    """``item``, its implicit prompt cut back to the last token that both texts have whole.

    Characters that two words share (``blue``, ``black``) would otherwise be torn from them, and the
    rest of each would be tokens that no text has.
    """
    if isinstance(item, Scored) or not item.implicit or not tokenizer.is_fast:
        return item
    prompt = item.prompt.content
    if not isinstance(prompt, str) or not prompt:
        return item
    sides = [f"{prompt}{side}" for side in item.responses]
    read = tokenizer(sides, add_special_tokens=False, return_offsets_mapping=True)
    border = 0
    tokens: list[list[tuple[int, Any]]] = [
        [(int(end), token) for token, (_, end) in zip(ids, offsets, strict=True)]
        for ids, offsets in zip(read["input_ids"], read["offset_mapping"], strict=True)
    ]
    for first, second in zip(*tokens, strict=False):
        if first != second or first[0] > len(prompt):
            break
        border = first[0]
    content = replace(item.prompt, content=prompt[:border])
    return replace(item, prompt=content, chosen=sides[0][border:], rejected=sides[1][border:])
