"""Which characters of a conversation's text its assistant wrote, and which tokens those are.

Found by the template's own words: each of an assistant's messages stands between what the template
writes around a dummy in its place. A turn begins where a policy would begin to write it, behind the
generation prompt, and ends with its end token.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from datamodules.ends import end_ids
from datamodules.templates import RESPONSE, ChatError
from datamodules.text.answers import answered, unthought
from datamodules.text.controls import readable
from datamodules.text.messages import Message
from datamodules.text.prompts import Prompt, render_prompt
from datamodules.text.tokens import decoded, going_on, tokenize

Span = tuple[int, int]
"""First character, and the one behind the last."""


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, messages: Sequence[Message], text: str
) -> list[Span]:
    """Where in ``text`` the assistant's turns stand, each with its end token.

    Args:
        prompt: tools and options of the conversation's row.
        messages: the whole conversation.
        text: as the chat template renders it.

    Raises:
        ValueError: the template writes a turn otherwise within the conversation than around a
            dummy, so that it cannot be told apart.
    """
    ends = "|".join(re.escape(decoded(tokenizer, [i])) for i in sorted(end_ids(tokenizer)))
    spans: list[Span] = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        span = _span(tokenizer, prompt, messages, i, text)
        if span is None or (spans and span[0] < spans[-1][1]):
            raise ValueError(
                "the tokenizer's chat template writes the assistant's turn in message"
                f" {i + 1} in a way that it cannot be told apart from the rest: set"
                " algo.assistant_only_loss=false, or give such rows as prompt and completion"
            )
        start, end = span
        closing = re.match(rf"\s*(?:{ends})", text[end:]) if ends else None
        written = closing[0] if closing else _closing(tokenizer, prompt, messages[:i])
        end += len(written) if text.startswith(written, end) else 0
        spans.append((start, end))
    return spans


def _closing(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, messages: Sequence[Message]
) -> str:
    """What the template ends a last turn with, where that is no end token."""
    dummy = {"role": "assistant", "content": RESPONSE}
    try:
        return render_prompt(tokenizer, prompt, [*messages, dummy]).rpartition(RESPONSE)[2]
    except ChatError:
        return ""


def _span(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    messages: Sequence[Message],
    i: int,
    text: str,
) -> Span | None:
    dummy = {"role": "assistant", "content": RESPONSE}
    around = [*messages[:i], dummy, *messages[i + 1 :]]
    try:
        _, framed = answered(tokenizer, replace(prompt, content=""), "", around)
    except ChatError:
        return None
    head, _, tail = framed.rpartition(RESPONSE)
    starts = [unthought(head), head]
    if i and messages[i - 1]["role"] != "assistant":
        try:
            asked = render_prompt(tokenizer, prompt, messages[:i], add_generation_prompt=True)
        except ChatError:
            asked = head
        starts = [asked, unthought(asked), *starts]
    start = next((len(s) for s in starts if text.startswith(s)), None)
    end = len(text) - len(tail)
    if start is None or not text.endswith(tail) or end < start:
        return None
    return start, end


def split_at(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], borders: Sequence[int]
) -> tuple[list[int], list[int]]:
    """``ids`` of a template's ``text`` with the end of a token at each border, and how many tokens
    stand before each.

    Where a token reaches across a border, what follows is tokenized apart, as it is where a policy
    answers.
    """
    said, whole = decoded(tokenizer, ids), readable(text)
    lead = said.removesuffix(whole) if said.endswith(whole) else ""  # a space, of some tokenizers
    heads = tokenize(tokenizer, [text[:border] for border in borders], [False] * len(borders))
    cuts, at = [0], 0
    for border, head in zip(borders, heads, strict=True):
        if ids[: len(head)] != head:
            head = list(ids[: cuts[-1]])
            head += going_on(
                tokenizer, head, text[:at], text[at:border], lead + readable(text[:border])
            )
            ids = head + going_on(tokenizer, head, text[:border], text[border:], said)
        cuts.append(len(head))
        at = border
    return ids, cuts[1:]
