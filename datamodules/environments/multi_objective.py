"""A response judged by several named components, each with its weight."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.checks import require_finite
from datamodules.environments.base import Options
from datamodules.environments.text import TextGenerationEnv
from datamodules.guard import Failure, run_all
from datamodules.rewards.functions import finite_number
from datamodules.text.prompts import asked_text

Component = Callable[..., float]


class MultiObjectiveRewardEnv(TextGenerationEnv):
    """``reward = sum of weight x component``; each component is in ``metrics`` as ``reward_NAME``.

    A component that is None does not apply: it is left out of the sum and of the metrics; where
    none applies, neither does the reward.

    Args:
        tokenizer, prompts: as of ``TextGenerationEnv``.
        reward_components: name -> ``(prompt, generated, full_text) -> float``. One that has a
            parameter ``metadata`` is given the other columns of the prompt's row there.
        reward_weights: name -> weight; 1 for all by default.
        options: see ``Environment``.

    Raises:
        ValueError: no components, or a weight without its component or the other way round.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Any],
        reward_components: Mapping[str, Component],
        reward_weights: Mapping[str, float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tokenizer, prompts, **options)
        if not reward_components:
            raise ValueError("reward_components is empty: give at least one")
        if reward_weights is None:
            reward_weights = dict.fromkeys(reward_components, 1.0)
        if different := set(reward_components) ^ set(reward_weights):
            raise ValueError(
                f"reward_components {sorted(reward_components)} and reward_weights"
                f" {sorted(reward_weights)} differ in {sorted(different)}: give a weight to each"
            )
        for name, weight in reward_weights.items():
            if finite_number(weight) is None:
                raise ValueError(f"reward_weights: {name!r} weighs {weight!r}, not a finite number")
        for name, weight in reward_weights.items():
            require_finite("env.reward_weights", **{name: weight})
        self.reward_components = dict(reward_components)
        self.reward_weights = dict(reward_weights)
        self._takes_metadata = {
            name
            for name, component in reward_components.items()
            if "metadata" in inspect.signature(component).parameters
        }

    def score(
        self, episodes: Sequence["MultiObjectiveRewardEnv"]
    ) -> list[tuple[float | None, dict]]:
        """Episodes side by side in threads."""
        calls = [partial(self._score_episode, episode) for episode in episodes]
        scored = run_all(calls)
        for result in scored:
            if isinstance(result, Failure):
                raise result.error
        return scored

    def compute_multi_objective_reward(
        self, prompt: str, generated: str, full_text: str, metadata: dict[str, Any] | None = None
    ) -> tuple[float | None, dict[str, float]]:
        """The weighted sum, and the own value of every component that applies.

        Raises:
            ValueError: a component returned something other than a finite number.
        """
        parts = {}
        for name, component in self.reward_components.items():
            more = {"metadata": metadata or {}} if name in self._takes_metadata else {}
            value = component(prompt, generated, full_text, **more)
            if value is None:
                continue
            parts[name] = finite_number(value)
            if parts[name] is None:
                raise ValueError(
                    f"the reward component {name!r} returned {value!r}, which is no"
                    f" finite number\n  prompt:   {prompt!r}\n  response: {generated!r}"
                )
        total = sum(self.reward_weights[name] * value for name, value in parts.items())
        return (total if parts else None), parts

    def _score_episode(self, episode: "MultiObjectiveRewardEnv") -> tuple[float | None, dict]:
        prompt, generated = asked_text(self.tokenizer, episode._prompt), episode.response
        total, parts = self.compute_multi_objective_reward(
            prompt, generated, prompt + generated, episode.metadata
        )
        return total, {f"reward_{name}": value for name, value in parts.items()}
