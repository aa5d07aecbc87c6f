"""Responses to one prompt, compared with each other."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.environments.base import Options
from datamodules.environments.text import TextGenerationEnv
from datamodules.rewards.judges import Judge, as_judge, human_judge, win_rates
from datamodules.text.prompts import asked_text
from datamodules.types import Observation, StepResult


class PreferenceComparisonEnv(TextGenerationEnv):
    """Which of two responses is better says a model, a person, or the one before the other.

    By hand: ``reset()``, ``step(response1)``, which shows the same prompt again, and
    ``step(response2)``, which ends the episode. Its reward is the preference: 1 where the first
    response is surely better, -1 where the second is, 0 for a draw. In its ``metrics``,
    ``preference`` is P(first is better), ``reward_first`` and ``reward_second`` what each of the
    two has earned: that probability and its complement.

    Under an online algorithm or ``task=collect_preferences``, where an episode must be one token
    sequence, each response is an episode of its own, and ``score`` compares those of one prompt:
    the reward is the share of its rivals that a response would beat, in [0, 1]. So it takes an
    algorithm that answers a prompt several times (``algo=grpo``). N responses are N (N - 1) / 2
    comparisons.

    Args:
        tokenizer, prompts: as of ``TextGenerationEnv``.
        preference_model: what says which of two responses is better, or rewards each: a path, a
            model, or a function (see ``as_judge``).
        human_feedback_fn: ``(prompt, response1, response2)`` -> a verdict, see ``human_judge``. It
            is asked first; the model decides where it returns None.
        options: see ``Environment``; ``attach`` refuses ``on_error`` and ``timeout_s``.

    Raises:
        ValueError: ``preference_model`` is none; or, at the first response, there is neither a
            model nor a function (prompts can be looked at without).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Any],
        preference_model: Any = None,
        human_feedback_fn: Callable[[str, str, str], Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tokenizer, prompts, **options)
        judge = None if preference_model is None else as_judge(preference_model, tokenizer)
        if judge is not None:
            judge.require(self.columns)
        self._judge = judge if human_feedback_fn is None else human_judge(human_feedback_fn, judge)
        self.responses: list[str] = []

    @property
    def judge(self) -> Judge:
        """What compares.

        Raises:
            ValueError: the environment was given nothing that does.
        """
        if self._judge is None:
            raise ValueError(
                "env.preference_model and env.human_feedback_fn are both missing, so nothing says"
                " which response is better: give one of them"
            )
        return self._judge

    def attach(self, policy: Any) -> None:
        """See ``Environment``; refuses before anything is sampled.

        Raises:
            ValueError: nothing compares, or episodes are to be scored one by one.
        """
        super().attach(policy)
        _ = self.judge
        if self.timeout_s is not None or self.on_error != "raise":
            raise ValueError(
                f"env.timeout_s={self.timeout_s} and env.on_error={self.on_error!r}: responses are"
                " compared with each other, so none can fail alone; leave both at null and raise"
                " (reward.timeout_s limits a reward)"
            )

    def reset(self, index: int | None = None) -> Observation:
        self.responses = []
        return super().reset(index)

    def step(self, action: Tensor | int) -> StepResult:
        """Take one whole response: the first, or the second, which ends the episode."""
        judge = self.judge
        result = self.respond(torch.as_tensor(action).reshape(-1))
        self.responses.append(self.response)
        result.info["responses"] = list(self.responses)
        result.metrics["num_responses"] = float(len(self.responses))
        if len(self.responses) == 1:
            self._response, self._done = [], False
            result.done, result.next_observation = False, self._observation()
            return result
        text = asked_text(self.tokenizer, self._prompt)
        first, second = self.responses
        chance = judge([text], [first], [second], [self.metadata])[0]
        result.reward = 2 * chance - 1
        result.metrics |= {
            "preference": chance,
            "reward_first": chance,
            "reward_second": 1 - chance,
        }
        return result

    def score(self, episodes: Sequence["PreferenceComparisonEnv"]) -> list[tuple[float, dict]]:
        """Each response against the others to its prompt.

        Raises:
            ValueError: there is no other.
        """
        groups: dict[int | None, list[int]] = {}
        for row, episode in enumerate(episodes):
            groups.setdefault(episode._index, []).append(row)
        if any(len(group) == 1 for group in groups.values()):
            raise ValueError(
                "PreferenceComparisonEnv compares the responses to a prompt, and there is but one"
                " to some: use algo=grpo with algo.num_generations of 2 or more, or collect pairs"
                " (task=collect_preferences) for algo=dpo"
            )
        rates = win_rates(
            self.judge,
            [asked_text(self.tokenizer, episode._prompt) for episode in episodes],
            [episode.response for episode in episodes],
            [episode.metadata for episode in episodes],
            list(groups.values()),
        )
        return [(rate, {}) for rate in rates]

    def render(self) -> str:
        """The prompt, and the responses so far."""
        responses = [f"Response {i}: {text}" for i, text in enumerate(self.responses, start=1)]
        return "\n".join([f"Prompt: {asked_text(self.tokenizer, self._prompt)}", *responses])

    def fork(self) -> "PreferenceComparisonEnv":
        other = super().fork()
        other.responses = list(self.responses)
        return other

    def _observation(self) -> Observation:
        observation = super()._observation()
        observation.metadata["comparison_round"] = len(self.responses)
        return observation
