"""Texts as tokens that fit their limits, tokenized once for all limits, and what had to go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.text.cache import cached, digest, tokenizer_digest
from datamodules.text.encoding import Limits, Rendered, encode_whole, truncated

CACHED_TEXTS = 2000
"""Fewer texts are tokenized faster than a cache of them is worth."""


@dataclass(frozen=True)
class Fitted:
    """A prompt [P] and its response [A]."""

    prompt: Tensor
    response: Tensor
    cut_prompt: int
    """Tokens that were cut off the prompt's left."""
    cut_response: int
    """Tokens that were cut off the response's right."""


def fitted(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Rendered], limits: Limits, close: bool
) -> Iterator[Fitted]:
    """Each text within ``limits``; ``close`` as for ``encode``."""
    for start, answer in zip(*whole_cached(tokenizer, texts, close), strict=True):
        room = limits.prompt_room(len(answer))
        if len(start) <= room and len(start) + len(answer) <= limits.max_length:
            yield Fitted(start, answer, 0, 0)
            continue
        kept = truncated(tokenizer, start.tolist(), answer.tolist(), limits)
        prompt, response = (torch.tensor(ids, dtype=torch.long) for ids in kept)
        yield Fitted(prompt, response, len(start) - len(prompt), len(answer) - len(response))


def whole_cached(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Rendered], close: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Token ids of prompts and of responses, whole."""

    def make() -> dict[str, Tensor]:
        pairs = encode_whole(tokenizer, texts, close=close)
        columns = {"prompts": [p for p, _ in pairs], "answers": [a for _, a in pairs]}
        made = {}
        for name, rows in columns.items():
            made[name] = torch.tensor([i for row in rows for i in row], dtype=torch.int32)
            made[f"{name}_lengths"] = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        return made

    if len(texts) < CACHED_TEXTS:
        flat = make()
    else:
        contents = [(text.start, text.whole, text.plain) for text in texts]
        flat = cached("tokens", digest(tokenizer_digest(tokenizer), close, contents), make)
    prompts, answers = (
        list(torch.split(flat[name].long(), flat[f"{name}_lengths"].tolist()))
        for name in ("prompts", "answers")
    )
    return prompts, answers
