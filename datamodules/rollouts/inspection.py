"""Prompts and episodes of an environment, looked at before a policy learns from them."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedTokenizerBase

from datamodules.environments.base import Environment
from datamodules.environments.text import TextGenerationEnv
from datamodules.guard import Failure, guarded
from datamodules.text.controls import doubled_in, found_in
from datamodules.text.inspection import Inspection, Part, Sample, parts, spread
from datamodules.types import Observation, Trajectory

LOOKED_AT, OF_OTHERS = 1000, 8
"""Most starting states that are looked at, and of environments that do more than ask a prompt."""


def inspect_episodes(
    env: Environment,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[int],
    held_out: Sequence[int],
) -> Inspection:
    """Counts, lengths, and what is suspicious; ``sample_of`` shows an episode."""
    found = Inspection()
    found.counts["starting states to train on"] = f"{len(train)}"
    found.counts["held out"] = f"{len(held_out)}"
    most = LOOKED_AT if isinstance(env, TextGenerationEnv) else OF_OTHERS
    starts = [train[i] for i in spread(len(train), most)]
    seen, failures = _begun(env, starts)
    if failures:
        found.suspect(len(failures), len(starts), f"starting states cannot begin: {failures[0]}")
    if len(starts) < len(train):
        found.counts["of which looked at"] = f"{len(starts)}"
    found.lengths["prompt"] = [len(o.input_ids) for o in seen]
    count = len(seen)
    twice = sum(bool(doubled_in(tokenizer, o.input_ids.tolist())) for o in seen)
    found.suspect(twice, count, "prompts have a special token twice in a row, as <s><s>")
    written = sum(bool(found_in(tokenizer, o.metadata.get("messages", []))) for o in seen)
    found.suspect(written, count, "prompts hold special tokens in a message, read as text")
    texts = Counter(o.prompt for o in seen)
    found.suspect(sum(n - 1 for n in texts.values()), count, "prompts repeat another one")
    kept, _ = _begun(env, [held_out[i] for i in spread(len(held_out), most)])
    both = sum(observation.prompt in texts for observation in kept)
    found.suspect(both, len(kept), "held-out prompts are trained on too")
    return found


def sample_of(title: str, trajectory: Trajectory) -> Sample:
    """An episode token by token: what was asked, what the policy wrote, and what came between."""
    whole: list[Part] = []
    read = 0
    for observation, action in zip(trajectory.observations, trajectory.actions, strict=True):
        ids = observation.input_ids.tolist()
        whole += parts(("environment" if read else "prompt", ids[read:]))
        whole += parts(("response", action.tolist()))
        read = len(ids) + len(action)
    said = f"{title}: reward {trajectory.total_reward:.3f}, ended by {trajectory.finish_reason}"
    return Sample(said, {"episode": whole})


def prompt_of(title: str, observation: Observation) -> Sample:
    """A prompt alone, where nothing is sampled."""
    return Sample(title, {"prompt": parts(("prompt", observation.input_ids.tolist()))})


def _begun(env: Environment, starts: Sequence[int]) -> tuple[list[Observation], list[Failure]]:
    """First observations, and why others are none: what such an episode costs, playing it says."""
    found = guarded([partial(_start, env, start) for start in starts], env.timeout_s)
    failures = [one for one in found if isinstance(one, Failure)]
    return [one for one in found if isinstance(one, Observation)], failures


def _start(env: Environment, start: int) -> Observation:
    return env.fork().reset(start)
