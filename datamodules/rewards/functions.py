"""Reward functions ``(prompts, responses, metadata=None) -> list[float]``, checked and timed.

Every reward runs behind ``RewardFunction``: what it raises, a wrong number of results, NaN or
infinity, and a call that does not come back become a ``RewardError`` that shows the culprit.
"""

import importlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from datamodules.checks import is_finite
from datamodules.guard import Failure, attempt, run_all

Metadata = Sequence[dict[str, Any]] | None
RawReward = Callable[..., Sequence[float]]


NO_SIGNALS = (
    "rewards are called in a thread of their own, where no signals can be set: use none (of"
    " math-verify: parsing_timeout=None, timeout_seconds=None), reward.timeout_s is a time limit"
)


class RewardError(RuntimeError):
    """A reward function failed; the message names it, the prompt and the response."""


class RewardFunction:
    """A batch reward function whose results can be relied on.

    Args:
        fn: ``(prompts, responses, metadata=None) -> list[float]``.
        timeout_s: seconds that one call may take; None waits for ever.
        name: shown in errors; default: the function's own.
    """

    def __init__(
        self, fn: RawReward, *, timeout_s: float | None = None, name: str | None = None
    ) -> None:
        if not callable(fn):
            raise TypeError(f"a reward must be callable, not {type(fn).__name__}")
        if timeout_s is not None and not (is_finite(timeout_s) and timeout_s > 0):
            raise ValueError(f"reward.timeout_s={timeout_s} must be positive, or null for no limit")
        self.fn = fn
        self.timeout_s = timeout_s
        self.name = name or getattr(fn, "__qualname__", type(fn).__name__)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], metadata: Metadata = None
    ) -> list[float]:
        """Rewards of a batch.

        Raises:
            RewardError: it raised, hung, or returned something other than one finite number each.
        """
        rewards = self._call_in_time(prompts, responses, metadata)
        if isinstance(rewards, Failure):
            error = rewards.error
            what = f"raised {type(error).__name__}: {error}"
            if rewards.overdue:
                what = f"did not return within reward.timeout_s={self.timeout_s:g} seconds"
            elif "main thread" in str(error):
                what += f" ({NO_SIGNALS})"
            index = self._culprit(prompts, responses, metadata)
            raise self._error(what, prompts, responses, index) from error
        if not isinstance(rewards, list):
            what = f"returned {rewards!r} instead of a list of numbers"
            raise self._error(what, prompts, responses, 0)
        if len(rewards) != len(responses):
            what = f"returned {len(rewards)} rewards for {len(responses)} responses"
            raise self._error(what, prompts, responses, 0)
        numbers = []
        for index, reward in enumerate(rewards):
            number = finite_number(reward)
            if number is None:
                what = f"returned {reward!r}, which is no finite number"
                raise self._error(what, prompts, responses, index)
            numbers.append(number)
        return numbers

    def _call(self, prompts: Any, responses: Any, metadata: Metadata) -> Any:
        """The raw results; a generator or an array of them is made a list."""
        rewards = self.fn(prompts, responses, metadata=metadata)
        if isinstance(rewards, str | bytes | dict) or not hasattr(rewards, "__iter__"):
            return rewards
        return rewards.tolist() if hasattr(rewards, "tolist") else list(rewards)

    def _call_in_time(self, prompts: Any, responses: Any, metadata: Metadata) -> Any:
        """The raw results, or the ``Failure`` of the call."""
        call = partial(self._call, prompts, responses, metadata)
        if self.timeout_s is None:
            return attempt(call)
        return run_all([call], timeout_s=self.timeout_s, workers=1)[0]

    def _culprit(self, prompts: Any, responses: Any, metadata: Metadata) -> int:
        """The first response that fails by itself too; the first of all if none does in time."""
        began = time.monotonic()
        for index in range(len(responses)):
            if time.monotonic() - began > (self.timeout_s or 60.0):
                break
            one = slice(index, index + 1)
            alone = prompts[one], responses[one], metadata[one] if metadata else None
            if isinstance(self._call_in_time(*alone), Failure):
                return index
        return 0

    def _error(self, what: str, prompts: Any, responses: Any, index: int) -> RewardError:
        where = f"response {index + 1} of {len(responses)}"
        if not responses:
            return RewardError(f"the reward function {self.name} {what} (an empty batch)")
        return RewardError(
            f"the reward function {self.name} {what}\n  at {where}\n"
            f"  prompt:   {prompts[index]!r}\n  response: {responses[index]!r}"
        )


def finite_number(reward: Any) -> float | None:
    """``reward`` as a float; None if it is no finite number (text that looks like one is none)."""
    if isinstance(reward, str | bytes):
        return None
    try:
        number = float(reward)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_reward(fn: RawReward) -> RewardFunction:
    """``fn`` behind its checks."""
    return fn if isinstance(fn, RewardFunction) else RewardFunction(fn)


def length_reward(
    prompts: Sequence[str], responses: Sequence[str], metadata: Metadata = None
) -> list[float]:
    """Longer is better: a hundredth for each word, at most 1."""
    return [min(len(response.split()) / 100, 1.0) for response in responses]


def length(timeout_s: float | None = None) -> RewardFunction:
    """``reward=length``."""
    return RewardFunction(length_reward, timeout_s=timeout_s)


def sentiment(timeout_s: float | None = None) -> RewardFunction:
    """``reward=sentiment``: VADER's compound score of the response, -1 to 1."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def compound(prompts: Any, responses: Sequence[str], metadata: Metadata = None) -> list[float]:
        return [analyzer.polarity_scores(response)["compound"] for response in responses]

    return RewardFunction(compound, timeout_s=timeout_s, name="sentiment")


def function(path: str, timeout_s: float | None = None) -> RewardFunction:
    """``reward=function reward.path=my_pkg.my_module:my_fn``.

    Raises:
        ValueError: the path has no such form, or nothing callable stands there.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"reward.path={path!r} must have the form my_pkg.my_module:my_fn")
    try:
        fn = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward.path={path!r} cannot be imported ({error}); the module must be importable from"
            " the folder that train.py is started in"
        ) from error
    if not callable(fn):
        raise ValueError(f"reward.path={path!r} is a {type(fn).__name__}, not a function")
    return RewardFunction(fn, timeout_s=timeout_s, name=path)
