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
from datamodules.template_options import template_variables
from datamodules.text.answers import answered
from datamodules.text.prompts import Content, Prompt, conversation, prompt_text
from datamodules.text.tokens import decoded, going_on, tokenize


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
    """A prompt with its response; see ``render_all``."""
    return render_all(tokenizer, prompt, [response])[0]


def render_all(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, responses: Sequence[Content]
) -> list[Rendered]:
    """A prompt with each of its responses; the prompt is the same text in all of them.

    A generation prompt may open thoughts (``<think>``) where the template writes none before an
    answer: those then belong to the responses, as in TRL.

    Raises:
        ValueError: the chat template refuses the conversation, or does not render it as its prompt
            and then an answer; or the text is no Unicode.
    """
    start = prompt_text(tokenizer, prompt, marked=True) if prompt.content else ""
    rendered = [
        (start, start + response)
        if isinstance(response, str)
        else answered(tokenizer, prompt, start, response)
        for response in responses
    ]
    start = min((start for start, _ in rendered), key=len)
    for text in (start, *(whole for _, whole in rendered)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds half a character: {error.reason}") from error
    plain = [isinstance(response, str) for response in responses]
    return [Rendered(start, whole, p) for (_, whole), p in zip(rendered, plain, strict=True)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Rendered],
    limits: Limits,
    *,
    close: bool = True,
) -> list[tuple[list[int], list[int]]]:
    """``(prompt ids, response ids)`` of each text within its limits; see ``encode_whole``."""
    whole = encode_whole(tokenizer, texts, close=close)
    return [truncated(tokenizer, start, answer, limits) for start, answer in whole]


def truncated(
    tokenizer: PreTrainedTokenizerBase, start: list[int], answer: list[int], limits: Limits
) -> tuple[list[int], list[int]]:
    """A prompt cut on the left and its response cut on the right, as the limits say."""
    start = _end_of(tokenizer, start, limits.prompt_room(len(answer)))
    return start, _beginning_of(answer, limits.max_length - len(start), _ends(tokenizer))


def encode_whole(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Rendered], *, close: bool = True
) -> list[tuple[list[int], list[int]]]:
    """``(prompt ids, response ids)`` of each text; all of them in few calls of the tokenizer.

    Args:
        close: end each response with the end token, and drop what a chat template writes after it,
            as a policy is trained. False leaves the text as the tokenizer makes it, as a reward
            model will see it.
    """
    plain = [text.plain for text in texts]
    prompt_ids = tokenize(tokenizer, [text.start for text in texts], plain)
    whole_ids = tokenize(tokenizer, [text.whole for text in texts], plain)
    ends = _ends(tokenizer)
    pairs = []
    for text, start, ids in zip(texts, prompt_ids, whole_ids, strict=True):
        start = start if text.start else []
        if text.plain and start and start[-1] in ends and ids[: len(start)] != start:
            start = start[:-1]  # the tokenizer closes every text; the response goes on
        if ids[: len(start)] == start:
            answer = ids[len(start) :]
        else:
            answer = _going_on(tokenizer, text, start, ids, ends)
        if close:
            answer = _closed(tokenizer, answer, text.plain)
        pairs.append((start, answer))
    return pairs


def _ends(tokenizer: PreTrainedTokenizerBase) -> Set[int]:
    """What may close a text."""
    return end_ids(tokenizer) | ({tokenizer.sep_token_id} - {None})


def _going_on(
    tokenizer: PreTrainedTokenizerBase,
    text: Rendered,
    start: list[int],
    ids: list[int],
    ends: Set[int],
) -> list[int]:
    """The response's ids where a token of the whole text reaches across the border."""
    response = text.whole[len(text.start) :]
    end = ids[-1:] if text.plain and ids[-1] in ends else []
    whole = decoded(tokenizer, ids[: len(ids) - len(end)] if end else ids)
    answer = going_on(tokenizer, start, text.start, response, whole)
    return answer if answer[-1:] == end else [*answer, *end]


def encode_responses(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    responses: Sequence[str],
    metadata: Sequence[dict[str, Any]] | None,
    limits: Limits,
) -> list[list[int]]:
    """Token ids of responses behind their prompts, as reward models are trained on them.

    Args:
        metadata: a conversation stands in its ``messages`` (and ``tools``), and the prompt's text
            is then not read.

    Raises:
        ValueError: see ``render``.
    """
    known = template_variables(tokenizer)  # a reward model's template is not the policy's
    rows = zip(prompts, responses, metadata or [{}] * len(prompts), strict=True)
    texts = [
        render(tokenizer, conversation(meta, known), [{"role": "assistant", "content": response}])
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
    ids = tokenize(tokenizer, [t.whole for t in rendered], [t.plain for t in rendered])
    return _not_empty([_end_of(tokenizer, row, max_length) for row in ids])


def _not_empty(rows: list[list[int]]) -> list[list[int]]:
    for number, row in enumerate(rows, start=1):
        if not row:
            raise ValueError(f"text {number} of {len(rows)} is empty: there is no token to score")
    return rows


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
