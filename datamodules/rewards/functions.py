"""Rewards: functions ``(prompts, responses, metadata=None) -> list[float]``, or as TRL has them.

Every reward runs behind ``RewardFunction``: what it raises, a wrong number of results, NaN or
infinity, and a call that does not come back become a ``RewardError`` that shows the culprit.
``None`` is no error: the reward does not apply to that response.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from datamodules.checks import is_finite, require_whole
from datamodules.guard import Failure
from datamodules.rewards.cache import RewardCache
from datamodules.rewards.calling import Metadata, Samples, signature_of
from datamodules.rewards.invoking import Work, is_async
from datamodules.rewards.main_thread import REMEDY, HiddenSignalError, wants_main
from datamodules.rewards.running import STARTUP_S, runner_of

RawReward = Callable[..., Sequence[float | None]]
Scored = list[tuple[float | None, dict[str, float]]]
"""Reward (None: it does not apply) and metrics of each response."""
AT_ONCE = 16
"""Calls at once of an ``async def`` reward that takes one response."""


class RewardError(RuntimeError):
    """A reward function failed; the message names it, the prompt and the response."""


class RewardFunction:
    """A reward function whose results can be relied on.

    Args:
        fn: ``(prompts, responses, metadata=None) -> list[float]``, or what else ``calling`` can
            tell by the names of its parameters; ``async def`` or not.
        timeout_s: seconds that one call may take; None waits for ever.
        name: shown in errors; default: the function's own.
        run_in: where it runs. ``thread`` is one of its own, beside the policy's evaluation;
            ``main`` the main thread after that, for what needs signals (math-verify's time limits)
            or was made there; ``process`` a process of its own, which can be ended, for functions
            that can be imported.
        concurrency: responses that are judged at once, each by a call of its own. None gives all
            to one call; but what takes one response is awaited 16 at once if it is ``async def``,
            and else called one after the other.
        retries: how often a call is made again that failed by what may pass: no connection, out of
            time, HTTP 408, 409, 425, 429 and 5xx. Waits 0.5 s, then twice as long each time, or as
            the server says.
        cache: a file that keeps rewards by all that the function is given, so that no response is
            judged twice, not in a later run either; for rewards of one response at a time.
        path: ``module:name`` of the function, where it is known.
        depends_on: what its rewards depend on besides, for the cache.

    Raises:
        TypeError: ``fn`` cannot be called.
        ValueError: an option is out of range or does not fit, or it cannot be told how ``fn`` is
            called.
    """

    def __init__(
        self,
        fn: RawReward,
        *,
        timeout_s: float | None = None,
        name: str | None = None,
        run_in: str = "thread",
        concurrency: int | None = None,
        retries: int = 2,
        cache: str | None = None,
        path: str | None = None,
        depends_on: str = "",
    ) -> None:
        if not callable(fn):
            raise TypeError(f"a reward must be callable, not {type(fn).__name__}")
        if timeout_s is not None and not (is_finite(timeout_s) and timeout_s > 0):
            raise ValueError(f"reward.timeout_s={timeout_s} must be positive, or null for no limit")
        require_whole("reward", 0, retries=retries)
        if concurrency is not None:
            require_whole("reward", 1, concurrency=concurrency)
        self.fn, self.timeout_s, self.retries = fn, timeout_s, retries
        self.name = name or name_of(fn)
        self.signature = signature_of(fn, self.name)
        self.run_in, self._runner = run_in, runner_of(fn, run_in, path)
        self._each = self.signature.kind == "one" or concurrency is not None
        self._at_once = concurrency or (AT_ONCE if self._each and is_async(fn) else 1)
        if self._at_once > 1 and run_in != "thread" and not is_async(fn):
            raise ValueError(
                f"reward.concurrency={concurrency} of a function that is not `async def` takes"
                f" threads: leave reward.run_in={run_in} out"
            )
        if cache is not None and not self._each:
            raise ValueError(
                f"reward.cache={cache!r} keeps the reward of one response, and {self.name} is given"
                " many at once: set reward.concurrency, with which it is called for each"
            )
        self._cache = None if cache is None else RewardCache(cache, fn, f"{self.name} {depends_on}")

    @property
    def names(self) -> list[str]:
        """Of the parts that are logged as ``reward_NAME``: it has none."""
        return []

    @property
    def in_main(self) -> bool:
        """Whether it needs the main thread."""
        return self.run_in == "main"

    def require(self, columns: Collection[str]) -> None:
        """Check that it can be called for rows of these columns (see ``Signature.require``)."""
        self.signature.require(columns)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], metadata: Metadata = None
    ) -> list[float | None]:
        """Rewards of a batch, None where it does not apply; see ``scores``."""
        return [reward for reward, _ in self.scores(Samples(prompts, responses, metadata))]

    def scores(self, samples: Samples) -> Scored:
        """Rewards of a batch, and what the function logged of it.

        Raises:
            RewardError: it raised, hung, or returned something other than one finite number, or
                None, for each.
        """
        if not self.signature.columns:  # else the environment has said all that there are
            self.require({name for row in samples.metadata or () for name in row})
        rewards, logged = (self._of_each if self._each else self._of_all)(samples)
        numbers: list[float | None] = []
        for index, reward in enumerate(rewards):
            number = finite_number(reward)
            if number is None and reward is not None:
                what = f"returned {reward!r}, which is no finite number"
                raise self._error(what, samples, index)
            numbers.append(number)
        values: dict[str, list[float]] = {}
        for name, value in logged:
            values.setdefault(f"logged_{name}", []).append(self._logged(name, value, samples))
        metrics = {name: sum(several) / len(several) for name, several in values.items()}
        return [(number, dict(metrics)) for number in numbers]

    def _of_all(self, samples: Samples) -> tuple[list[Any], list]:
        """The raw rewards of one call."""
        done = self._call(samples, self.retries)
        if isinstance(done, Failure):
            index = 0 if is_async(self.fn) else self._culprit(samples)
            raise self._failed(done, samples, index)
        (rewards,), logged = done
        if not isinstance(rewards, list):
            what = f"returned {rewards!r} instead of a list of numbers"
            raise self._error(what, samples, 0)
        if len(rewards) != len(samples):
            what = f"returned {len(rewards)} rewards for {len(samples)} responses"
            raise self._error(what, samples, 0)
        return rewards, logged

    def _call(self, samples: Samples, retries: int = 0) -> Any:
        """The results of one call, or its ``Failure``."""
        try:
            call = self.signature.whole(samples)
        except ValueError as error:
            return Failure(error)
        work = Work([call], 1, retries, self.timeout_s, self.signature.logs)
        done = self._runner.run(work)
        failed = not isinstance(done, Failure) and isinstance(done[0][0], Failure)
        return done[0][0] if failed else done

    def _of_each(self, samples: Samples) -> tuple[list[Any], list]:
        """The raw rewards of a call for each response."""
        calls = self.signature.each(samples)
        rewards, left = [None] * len(calls), list(range(len(calls)))
        if self._cache is not None:
            rewards, left = self._cache.look_up(calls)
        if not left:
            return rewards, []
        work = Work([calls[i] for i in left], self._at_once, self.retries, self.timeout_s,
                    self.signature.logs)  # fmt: skip
        done = self._runner.run(work)
        if isinstance(done, Failure):
            raise self._failed(done, samples, left[0])
        results, logged = done
        for index, result in zip(left, results, strict=False):  # it may have stopped at a failure
            rewards[index] = result if isinstance(result, Failure) else self._one(result)
        fine = [i for i in left[: len(results)] if not isinstance(rewards[i], Failure)]
        if self._cache is not None:
            known = [i for i in fine if rewards[i] is None or finite_number(rewards[i]) is not None]
            self._cache.keep([calls[i] for i in known], [rewards[i] for i in known])
        for index in left:
            if isinstance(rewards[index], Failure):
                raise self._failed(rewards[index], samples, index)
        return rewards, logged

    def _one(self, result: Any) -> Any:
        """The reward in what a call for one response returned: the only one, if it takes many."""
        if self.signature.kind == "one":
            return result
        return result[0] if isinstance(result, list) and len(result) == 1 else (result,)

    def _culprit(self, samples: Samples) -> int:
        """The first response that fails by itself too; the first of all if none does in time."""
        began, limit = time.monotonic(), self.timeout_s or 60.0
        limit += STARTUP_S if self.run_in == "process" else 0.0
        for index in range(len(samples)):
            if time.monotonic() - began > limit:
                break
            if isinstance(self._call(samples.pick([index])), Failure):
                return index
        return 0

    def _logged(self, name: Any, value: Any, samples: Samples) -> float:
        number = finite_number(value)
        if number is None or not isinstance(name, str):
            raise self._error(f"logged {name!r}={value!r}, which is no finite number", samples, 0)
        return number

    def _failed(self, failure: Failure, samples: Samples, index: int) -> RewardError:
        error = failure.error
        what, hides = f"raised {type(error).__name__}: {error}", HiddenSignalError.__name__
        if failure.overdue:
            what = f"did not return within reward.timeout_s={self.timeout_s or 0:g} seconds"
        elif type(error).__name__ == hides:
            what = f"{error}" + (f": {REMEDY}" if self.run_in != "main" else "")
        elif self.run_in != "main" and wants_main(error):
            what += f" ({REMEDY})"
        made = self._error(what, samples, index)
        made.__cause__ = error
        return made

    def _error(self, what: str, samples: Samples, index: int) -> RewardError:
        where = f"response {index + 1} of {len(samples)}"
        if not samples.responses:
            return RewardError(f"the reward function {self.name} {what} (an empty batch)")
        return RewardError(
            f"the reward function {self.name} {what}\n  at {where}\n"
            f"  prompt:   {samples.prompts[index]!r}\n  response: {samples.responses[index]!r}"
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


def name_of(fn: Callable[..., Any]) -> str:
    """A function's own name, or that of an object's class."""
    while isinstance(fn, partial):
        fn = fn.func
    return getattr(fn, "__qualname__", type(fn).__name__)
