"""An answered conversation as text that begins with its prompt's.

A policy continues the text of the prompt. Most templates write an answered conversation as just
that with the answer behind it; others write what comes before an answer differently, or leave the
answer's thoughts out. What the row says is kept: the prompt as it is, then the answer.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from datamodules.kept import TAGS
from datamodules.templates import RESPONSE, ChatError, thought_tags, with_thoughts
from datamodules.text.controls import disarmed
from datamodules.text.messages import Message
from datamodules.text.prompts import Prompt, is_continued, render_prompt

_EMPTY = "|".join(rf"{re.escape(a)}\s*({re.escape(b)}\s*)?" for a, b in TAGS)
_THOUGHTS = re.compile(f"({_EMPTY})$")
"""Thoughts that a generation prompt opens, or rules out by an empty pair of tags."""
_END_LEAD = re.compile(rf"\s*({_EMPTY})?$")
"""What a template may write between its generation prompt and an answer."""
_SAME = 5
"""Last characters of both that say that it is the same generation prompt."""


def answered(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, start: str, answer: Sequence[Message]
) -> tuple[str, str]:
    """The text of the prompt, and that of prompt and answer.

    Args:
        start: the prompt's text. Where it opens thoughts, or rules them out, and this answer is
            written otherwise, that is left out of it.

    Raises:
        ValueError: the template refuses it, or writes something else.
    """
    if not answer:
        return start, start
    before, answer = list(prompt.content or []), list(answer)
    if before and is_continued(prompt) and answer[0]["role"] == "assistant":
        said = before.pop()["content"] + (answer[0].get("content") or "")
        answer[0] = {**answer[0], "content": said}
    write = partial(render_prompt, tokenizer, prompt)
    try:
        whole = write([*before, *answer])
    except ChatError as error:
        last = f"the thoughts in message {len(before) + len(answer)}"
        tags = thought_tags(str(tokenizer.chat_template))
        if not tags or error.lost != [last] or "tool_calls" in answer[-1]:
            raise
        asked = [*before, *answer[:-1]]
        whole = _with_own_thoughts(tokenizer, write, asked, answer[-1])
    if whole.startswith(start) or not before:
        return start, whole
    bare = unthought(start)
    if whole.startswith(bare) and bare != start:
        return bare, whole
    head, _ = _around(write, before)
    lead = _lead(start, head)
    if lead is None or not whole.startswith(head):
        raise ValueError(
            "the tokenizer's chat template renders a conversation differently once it is answered,"
            f" so prompt and response cannot be told apart: {start[-60:]!r} is not how"
            f" {whole[:200]!r} begins. Give prompt, chosen and rejected as plain text instead"
        )
    return start, start + lead + whole[len(head) :]


def unthought(start: str) -> str:
    """A generation prompt without the thoughts that it opens or rules out."""
    return _THOUGHTS.sub("", start)


def _around(
    write: Callable[[Sequence[Message]], str], before: Sequence[Message]
) -> tuple[str, str]:
    """What the template writes before and behind an answer without thoughts."""
    text = write([*before, {"role": "assistant", "content": RESPONSE}])
    head, _, tail = text.rpartition(RESPONSE)
    return head, tail


def _lead(start: str, head: str) -> str | None:
    """What an answered conversation has between the end of ``start`` and the answer, where its
    beginning is another."""
    lead = _END_LEAD.search(head)
    at = range(lead.start() if lead else len(head), len(head) + 1)
    same = {i: _common_end(start, head[:i]) for i in at}
    best = max(same, key=lambda i: same[i])
    return head[best:] if same[best] >= _SAME else None


def _common_end(left: str, right: str) -> int:
    """How many last characters two texts share."""
    ends = zip(reversed(left), reversed(right), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends))


def _with_own_thoughts(
    tokenizer: PreTrainedTokenizerBase,
    write: Callable[[Sequence[Message]], str],
    before: Sequence[Message],
    answer: Message,
) -> str:
    """An answer whose thoughts the template would leave out."""
    head, tail = _around(write, before)
    opens, _ = tags = thought_tags(str(tokenizer.chat_template)) or TAGS[0]
    said = with_thoughts(answer, tags).lstrip()
    said = said.removeprefix(opens).lstrip("\n")
    (message,) = disarmed(tokenizer, [{"role": "assistant", "content": said}])
    return f"{unthought(head)}{opens}\n{message['content']}{tail}"
