"""Prompts that leave no room for a response, or that the chat template does not take, found before
the first of them is played."""

import warnings
from collections.abc import Sequence

import torch

from datamodules.environments.base import Environment
from datamodules.environments.text import TextGenerationEnv
from datamodules.text.cache import cached, digest, tokenizer_digest
from datamodules.text.problems import below
from datamodules.text.prompts import Prompt, encode_prompt
from datamodules.types import Observation, Policy

REFUSED = -1
"""Length of a prompt that cannot become tokens."""
CACHED_PROMPTS = 2000
"""Fewer prompts are tokenized faster than a cache of their lengths is worth."""


def without_overlong(
    policy: Policy,
    env: Environment,
    train: Sequence[int],
    held_out: Sequence[int],
    *,
    places: Sequence[str],
    skip: bool,
) -> tuple[list[int], list[int]]:
    """The starting states of ``train`` and ``held_out`` whose prompts can be answered.

    Args:
        places: file and line of each of the environment's prompts, as far as they are known.
        skip: leave others out with a warning.

    Raises:
        ValueError: there are others, and they are not to be left out, or nothing else is left.
    """
    if not isinstance(env, TextGenerationEnv):
        return list(train), list(held_out)
    starts = sorted({*train, *held_out})
    lengths = dict(zip(starts, prompt_lengths(env, starts), strict=True))
    refused = {start for start in starts if lengths[start] == REFUSED}
    if refused:
        _tell_refused(env, sorted(refused), places, skip and len(refused) < len(starts))
        train, held_out = ([i for i in given if i not in refused] for given in (train, held_out))
        starts = [start for start in starts if start not in refused]
        lengths = {start: lengths[start] for start in starts}
    room = {n: policy.fits(_of_length(n), env) for n in set(lengths.values())}
    overlong = [start for start in starts if not room[lengths[start]]]
    if not overlong:
        return list(train), list(held_out)
    shown = below([f"{_place(places, s)}: {lengths[s]} tokens" for s in overlong])
    limit = "the model's positions"
    if env.max_length is not None:
        limit = f"env.max_length={env.max_length} and {limit}"
    what = (
        f"{len(overlong)} of {len(starts)} prompts leave no room for a response of"
        f" algo.max_new_tokens within {limit}:{shown}"
    )
    left = [i for i in train if i not in {*overlong}]
    if not skip or not left:
        raise ValueError(f"{what}\nMake room, or leave them out with data.on_error=skip")
    warnings.warn(f"{what}\nThey are left out", stacklevel=4)
    return left, [i for i in held_out if i not in {*overlong}]


def prompt_lengths(env: TextGenerationEnv, starts: Sequence[int]) -> list[int]:
    """Tokens of the prompts at ``starts``; ``REFUSED`` where they cannot become any."""
    prompts = [env.prompt(start) for start in starts]

    def make() -> dict[str, torch.Tensor]:
        lengths = [_length(env, prompt) for prompt in prompts]
        return {"lengths": torch.tensor(lengths)}

    if len(prompts) < CACHED_PROMPTS:
        return make()["lengths"].tolist()
    own = "chat_template_kwargs"
    contents = [(prompt.content, prompt.tools, prompt.metadata.get(own)) for prompt in prompts]
    return cached("lengths", digest(tokenizer_digest(env.tokenizer), contents), make)[
        "lengths"
    ].tolist()


def _length(env: TextGenerationEnv, prompt: Prompt) -> int:
    try:
        return len(encode_prompt(env.tokenizer, prompt))
    except ValueError:
        return REFUSED


def _tell_refused(
    env: TextGenerationEnv, refused: Sequence[int], places: Sequence[str], skip: bool
) -> None:
    """
    Raises:
        ValueError: the prompts are not to be left out; says why of the first ones.
    """
    lines = []
    for start in refused:
        try:
            encode_prompt(env.tokenizer, env.prompt(start))
        except ValueError as error:
            lines.append(f"{_place(places, start)}: {error}")
    what = f"{len(refused)} prompts cannot become tokens:{below(lines)}"
    if not skip:
        raise ValueError(f"{what}\nMend them, or leave them out with data.on_error=skip")
    warnings.warn(f"{what}\nThey are left out", stacklevel=5)


def _of_length(count: int) -> Observation:
    ids = torch.zeros(count, dtype=torch.long)
    return Observation(ids, torch.ones_like(ids), "", {})


def _place(places: Sequence[str], start: int) -> str:
    return places[start] if start < len(places) else f"prompt {start}"
