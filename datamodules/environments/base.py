"""What an environment is: observations in, responses out, a reward at the end.

An environment object holds one episode at a time. Many episodes at once are many cheap ``fork``s
of one environment, played together by ``RolloutDataModule``; finished ones are scored as one batch.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack  # typing has it from Python 3.11 on

from datamodules.checks import is_finite, require_whole
from datamodules.types import Observation, StepResult


class Options(TypedDict, total=False):
    """What every environment can be told; None leaves the class's own value."""

    max_length: int | None
    stop_sequences: Sequence[str] | None
    temperature: float | None
    on_error: str | None
    timeout_s: float | None


class Environment(ABC):
    """Base of all environments: implement ``reset``, ``respond``, and ``score`` for the reward.

    The values of ``Options`` are attributes: a class sets its defaults in its body.
    """

    max_length: int | None = None
    """Most tokens that an episode, prompt included, may have."""
    stop_sequences: tuple[str, ...] = ()
    """Strings that end a response. They count only in the response, never in the prompt."""
    temperature: float = 1.0
    """Sampling temperature that the rewards were made for. 1.0 leaves it to the policy; another
    value must be the policy's own, which ``RolloutDataModule`` checks."""
    on_error: str = "raise"
    """What an episode's error does: ``raise`` stops the run, ``skip`` costs the episode alone."""
    timeout_s: float | None = None
    """Seconds that one episode's ``respond`` or ``score`` may take; None waits for ever. Where it
    is set, each episode is scored by itself, in threads."""
    num_failed: int = 0
    """Episodes that have failed so far."""
    num_scored: int = 0
    """Episodes that some reward applied to so far."""
    num_unscored: int = 0
    """Episodes that none did."""
    reward_weights: Mapping[str, float] | None = None
    """Where the reward is a weighted sum, the weights of its parts, whose values are the metrics
    ``reward_NAME``."""
    held_out: Sequence[int] | None = None
    """Starting states kept for evaluation; None leaves the choice to the data module."""

    def __init__(self, **options: Unpack[Options]) -> None:
        self.set_options(**options)

    def set_options(self, **options: Unpack[Options]) -> None:
        """Take what is given and is not None.

        Raises:
            TypeError: there is no such option.
            ValueError: names the option that is out of range.
        """
        if unknown := sorted(set(options) - set(Options.__annotations__)):
            known = ", ".join(Options.__annotations__)
            raise TypeError(f"{type(self).__name__} knows no {unknown}; every environment: {known}")
        for name, value in options.items():
            if value is not None:
                setattr(self, name, tuple(value) if name == "stop_sequences" else value)
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"env.on_error={self.on_error!r}: use raise or skip")
        if self.max_length is not None:
            require_whole("env", 1, max_length=self.max_length)
        if self.timeout_s is not None and not (is_finite(self.timeout_s) and self.timeout_s > 0):
            raise ValueError(
                f"env.timeout_s={self.timeout_s} must be positive, or null for no limit"
            )
        if not (is_finite(self.temperature) and self.temperature > 0):
            raise ValueError(f"env.temperature={self.temperature} must be positive")
        if any(not stop for stop in self.stop_sequences or ()):
            raise ValueError("env.stop_sequences holds an empty string: it would end all responses")

    @abstractmethod
    def __len__(self) -> int:
        """Number of distinct starting states."""

    @abstractmethod
    def reset(self, index: int | None = None) -> Observation:
        """Start an episode from starting state ``index``; from the next one in turn if None."""

    @abstractmethod
    def respond(self, tokens: Tensor) -> StepResult:
        """Take one whole response [A]. The reward of a finished episode is left to ``score``."""

    def score(
        self, episodes: "Sequence[Environment]"
    ) -> list[tuple[float | None, dict[str, float]]]:
        """Final reward and metrics of finished episodes, forks of this one, as one batch.

        A reward of None does not apply: nothing is said of the episode's worth.
        May run in a worker thread while the policy is evaluated.
        """
        return [(0.0, {}) for _ in episodes]

    def step(self, action: Tensor | int) -> StepResult:
        """Take an action alone, its reward included."""
        return self._scored(self.respond(torch.as_tensor(action).reshape(-1)))

    def attach(self, policy: Any) -> None:
        """Take note of the language model that plays; called once, before it does."""
        self.policy = policy

    def fork(self) -> "Environment":
        """Another episode of the same task, sharing all that is not the episode's own."""
        return copy.copy(self)

    def _scored(self, result: StepResult) -> StepResult:
        if result.done:
            reward, metrics = self.score([self])[0]
            if reward is None:
                result.info["unscored"] = True
            result.reward += reward or 0.0
            result.metrics.update(metrics)
        return result
