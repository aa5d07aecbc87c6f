"""Prompts with their responses -> token ids, truncated, the end token kept.

A response is tokenized together with its prompt, so that its tokens are those of the whole text;
where a token would reach across the border, the two are tokenized apart, as they are when a policy
answers a prompt.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.ends import closing_id, end_ids
from datamodules.templates import render_chat
from datamodules.text.prompts import Content, Prompt, prompt_text


@dataclass(frozen=True)
class Limits:
    """How long a text may be, in tokens."""

    max_length: int = 512
    """Of prompt and response together: the response is cut on the right."""
    max_prompt_length: int = 256
    """Of the prompt alone: it is cut on the left."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(
                f"max_length={self.max_length} must be 2 or more: a token of prompt and of response"
            )
        if not 0 < self.max_prompt_length < self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} must be positive and smaller than"
                f" max_length={self.max_length}, or no response would fit"
            )

    def prompt_room(self, response_length: int) -> int:
        """Most tokens of the prompt of a response of that length."""
        return self.max_prompt_length

    def scaled(self, max_length: int) -> "Limits":
        """Limits of another length that share it out alike between prompt and response.

        Raises:
            ValueError: the length does not hold a token of each.
        """
        if max_length < 2:
            raise ValueError(
                f"max_length={max_length} must be 2 or more: a token of prompt and of response each"
            )
        share = max_length * self.max_prompt_length // self.max_length
        return replace(self, max_length=max_length, max_prompt_length=max(share, 1))


class Window(Limits):
    """Limits of a model that has but one, the positions it knows.

    The response comes first, and the prompt takes what it leaves, at least ``max_prompt_length``.
    """

    def prompt_room(self, response_length: int) -> int:
        return max(self.max_prompt_length, self.max_length - response_length)

    @classmethod
    def of(cls, max_length: int) -> "Window":
        """A quarter of it is the prompt's, whatever the response."""
        return cls(max_length, max(max_length // 4, 1))


@dataclass(frozen=True)
class Rendered:
    """A text as it goes to the tokenizer."""

    start: str
    """The prompt."""
    whole: str
    """Prompt and response."""
    plain: bool
    """Not from a chat template, which writes its own special tokens."""


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: Content) -> Rendered:
    """
    Raises:
        ValueError: the chat template refuses the conversation, or does not render it as its prompt
            and then an answer; or the text is no Unicode.
    """
    plain = isinstance(response, str)
    try:
        start = prompt_text(tokenizer, prompt) if prompt.content else ""
        whole = start + response if plain else _render_answer(tokenizer, prompt, response)
    except ValueError:
        raise
    except Exception as error:  # templates raise what they like
        raise ValueError(f"the chat template refuses the conversation: {error}") from error
    if not whole.startswith(start):
        raise ValueError(
            "the tokenizer's chat template renders a conversation differently once it is answered,"
            f" so prompt and response cannot be told apart: {start[-60:]!r} is not how"
            f" {whole[:200]!r} begins. Give prompt, chosen and rejected as plain text instead"
        )
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds half a character: {error.reason}") from error
    return Rendered(start, whole, plain)


def _render_answer(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, answer: Content) -> str:
    return render_chat(tokenizer, [*prompt.content, *answer], tools=prompt.tools)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Rendered],
    limits: Limits,
    *,
    close: bool = True,
) -> list[tuple[list[int], list[int]]]:
    """``(prompt ids, response ids)`` of each text; all of them in few calls of the tokenizer.

    Args:
        close: end each response with the end token, and drop what a chat template writes after it,
            as a policy is trained. False leaves the text as the tokenizer makes it, as a reward
            model will see it.
    """
    plain = [text.plain for text in texts]
    prompt_ids = _tokenize(tokenizer, [text.start for text in texts], plain)
    whole_ids = _tokenize(tokenizer, [text.whole for text in texts], plain)
    ends = end_ids(tokenizer) | ({tokenizer.sep_token_id} - {None})
    pairs = []
    for text, start, ids in zip(texts, prompt_ids, whole_ids, strict=True):
        start = start if text.start else []
        if text.plain and start and start[-1] in ends and ids[: len(start)] != start:
            start = start[:-1]  # the tokenizer closes every text; the response goes on
        if ids[: len(start)] == start:
            answer = ids[len(start) :]
        else:
            answer = tokenizer(text.whole[len(text.start) :], add_special_tokens=False)["input_ids"]
            if ids[-1] in ends and answer[-1:] != ids[-1:]:
                answer = [*answer, ids[-1]]
        if close:
            answer = _closed(tokenizer, answer, text.plain)
        start = _end_of(tokenizer, start, limits.prompt_room(len(answer)))
        pairs.append((start, _beginning_of(answer, limits.max_length - len(start), ends)))
    return pairs


def encode_responses(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    metadata: Sequence[dict[str, Any]] | None,
    limits: Limits,
) -> list[list[int]]:
    """Token ids of responses behind their prompts, as reward models are trained on them.

    Args:
        metadata: a conversation stands in its ``messages``, and the prompt's text is then not read.

    Raises:
        ValueError: see ``render``.
    """
    rows = zip(prompts, responses, metadata or [{}] * len(prompts), strict=True)
    texts = [
        render(tokenizer, Prompt(meta["messages"]), [{"role": "assistant", "content": response}])
        if "messages" in meta
        else render(tokenizer, Prompt(prompt), response)
        for prompt, response, meta in rows
    ]
    pairs = encode(tokenizer, texts, limits, close=False)
    return _not_empty([start + answer for start, answer in pairs])


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Content], max_length: int
) -> list[list[int]]:
    """Token ids of whole texts or conversations, in which nobody knows where the response begins:
    a longer one keeps its end, and its opening token.

    Raises:
        ValueError: see ``render``.
    """
    rendered = [render(tokenizer, Prompt(""), text) for text in texts]
    ids = _tokenize(tokenizer, [t.whole for t in rendered], [t.plain for t in rendered])
    return _not_empty([_end_of(tokenizer, row, max_length) for row in ids])


def _not_empty(rows: list[list[int]]) -> list[list[int]]:
    for number, row in enumerate(rows, start=1):
        if not row:
            raise ValueError(f"text {number} of {len(rows)} is empty: there is no token to score")
    return rows


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], plain: Sequence[bool]
) -> list[list[int]]:
    """Ids of every distinct text once; a fast tokenizer spreads a call over all cores.

    A chat template has written its own special tokens, so none are added to it.
    """
    ids: dict[tuple[str, bool], list[int]] = {}
    for special in (True, False):
        wanted = {t for t, p in zip(texts, plain, strict=True) if p is special}
        if wanted:
            order = sorted(wanted)
            encoded = tokenizer(order, add_special_tokens=special)["input_ids"]
            ids |= {(text, special): row for text, row in zip(order, encoded, strict=True)}
    return [ids[text, special] for text, special in zip(texts, plain, strict=True)]


def _closed(tokenizer: PreTrainedTokenizerBase, answer: list[int], plain: bool) -> list[int]:
    """``answer`` up to the first end token after which it says nothing more; else it gets one."""
    ends, end = end_ids(tokenizer), len(answer)
    for at in reversed([i for i, token in enumerate(answer) if token in ends]):
        if tokenizer.decode(answer[at + 1 : end], skip_special_tokens=True).strip():
            break
        end = at
    if end < len(answer):
        return answer[: end + 1]
    closing = closing_id(tokenizer, plain=plain)
    return answer if closing is None else [*answer, closing]


def _end_of(tokenizer: PreTrainedTokenizerBase, ids: list[int], room: int) -> list[int]:
    """``ids`` cut on the left; what opens every text of the tokenizer stays."""
    if len(ids) <= room:
        return ids
    opens = ids[:1] if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
    return opens + ids[len(ids) - room + len(opens) :]


def _beginning_of(ids: list[int], room: int, ends: Set[int]) -> list[int]:
    """``ids`` cut on the right; what ends them stays."""
    if len(ids) <= room:
        return ids
    closing = ids[-1:] if ids[-1] in ends else []
    return ids[: room - len(closing)] + closing
