"""A conversation as its chat template writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> str:
    """The text of ``messages``.

    Templates of models that also see (LLaVA, SmolVLM) read a message's content as a list of parts,
    and print nothing of one that is text: those get the text as such a part.

    Args:
        tools: JSON schemas of tools that may be called.
        options: of ``apply_chat_template``.
    """

    def written(given: Sequence[Mapping[str, Any]]) -> str:
        return tokenizer.apply_chat_template(
            list(given), tools=list(tools) or None, tokenize=False, **options
        )

    def lost(text: str) -> int:
        return sum(content not in text for content in contents)

    contents = [m["content"].strip() for m in messages if isinstance(m.get("content"), str)]
    text, refusal = "", None
    try:
        text = written(messages)
    except Exception as error:  # templates raise what they like
        refusal = error
    if refusal is None and not lost(text):
        return text
    try:
        other = written([_in_parts(message) for message in messages])
    except Exception as error:
        if refusal is not None:
            raise refusal from error
        return text
    return other if refusal is not None or lost(other) < lost(text) else text


def _in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(message.get("content"), str):
        return message
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
