"""Prompts with their responses -> token ids, truncated, the end token kept.

A response is tokenized together with its prompt, so that its tokens are those of the whole text;
where a token would reach across the border, the two are tokenized apart, as they are when a policy
answers a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from datamodules.pairs import Content
from datamodules.prompts import Prompt, prompt_text


@dataclass(frozen=True)
class Limits:
    """How long a text may be, in tokens."""

    max_length: int = 512
    """Of prompt and response together: the response is cut on the right."""
    max_prompt_length: int = 256
    """Of the prompt alone: it is cut on the left."""

    def __post_init__(self) -> None:
        if not 0 < self.max_prompt_length < self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} must be positive and smaller than"
                f" max_length={self.max_length}, or no response would fit"
            )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[Prompt, Content]],
    limits: Limits,
    *,
    close: bool = True,
) -> list[tuple[list[int], list[int]]]:
    """``(prompt ids, response ids)`` of each text; all of them in few calls of the tokenizer.

    Args:
        close: end each response with the end token, and drop what a chat template writes after it,
            as a policy is trained. False leaves the text as the tokenizer makes it, as a reward
            model will see it.

    Raises:
        ValueError: a chat template does not render a conversation as its prompt and then an answer.
    """
    starts = [prompt_text(tokenizer, p) if p.content else "" for p, _ in texts]
    wholes = [
        _whole(tokenizer, prompt, start, response)
        for (prompt, response), start in zip(texts, starts, strict=True)
    ]
    plain = [isinstance(response, str) for _, response in texts]
    prompt_ids = _tokenize(tokenizer, starts, plain)
    whole_ids = _tokenize(tokenizer, wholes, plain)
    pairs = []
    for i, (start, ids) in enumerate(zip(prompt_ids, whole_ids, strict=True)):
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        if plain[i] and start and start[-1] in ends and whole_ids[i][: len(start)] != start:
            start = start[:-1]  # the tokenizer closes every text; the response goes on
        if ids[: len(start)] == start:
            answer = ids[len(start) :]
        else:
            answer = tokenizer(wholes[i][len(starts[i]) :], add_special_tokens=False)["input_ids"]
        if close:
            answer = _closed(tokenizer, answer, plain[i])
        pairs.append(_cut(tokenizer, start, answer, limits, ends))
    return pairs


def _whole(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, start: str, response: Content
) -> str:
    if isinstance(response, str):
        return start + response
    whole = tokenizer.apply_chat_template([*prompt.content, *response], tokenize=False)
    if not whole.startswith(start):
        raise ValueError(
            "the tokenizer's chat template renders a conversation differently once it is answered,"
            f" so prompt and response cannot be told apart: {start[-60:]!r} is not how"
            f" {whole[:200]!r} begins. Give prompt, chosen and rejected as plain text instead"
        )
    return whole


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], plain: Sequence[bool]
) -> list[list[int]]:
    """Ids of every distinct text once; a fast tokenizer spreads a call over all cores.

    A chat template has written its own special tokens, so none are added to it.
    """
    ids: dict[tuple[str, bool], list[int]] = {("", True): [], ("", False): []}
    for special in (True, False):
        wanted = {t for t, p in zip(texts, plain, strict=True) if p is special and t}
        if wanted:
            order = sorted(wanted)
            encoded = tokenizer(order, add_special_tokens=special)["input_ids"]
            ids |= {(text, special): row for text, row in zip(order, encoded, strict=True)}
    return [ids[text, special] for text, special in zip(texts, plain, strict=True)]


def _closed(tokenizer: PreTrainedTokenizerBase, answer: list[int], plain: bool) -> list[int]:
    """``answer`` with exactly one end token, at its end."""
    eos = tokenizer.eos_token_id
    if eos is None:
        return answer
    if eos in answer:
        last = len(answer) - answer[::-1].index(eos)
        if not tokenizer.decode(answer[last:], skip_special_tokens=True).strip():
            answer = answer[:last]
    while answer[-2:] == [eos, eos]:
        answer = answer[:-1]
    return answer if not plain or answer[-1:] == [eos] else [*answer, eos]


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    start: list[int],
    answer: list[int],
    limits: Limits,
    ends: set[int],
) -> tuple[list[int], list[int]]:
    if len(start) > limits.max_prompt_length:
        opens = start[:1] if start[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
        start = opens + start[len(start) - limits.max_prompt_length + len(opens) :]
    room = limits.max_length - len(start)
    if len(answer) > room:
        closing = answer[-1:] if answer[-1] in ends else []
        answer = answer[: room - len(closing)] + closing
    return start, answer
