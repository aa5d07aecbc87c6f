"""Whole episodes, played by a policy and scored, whatever an environment does meanwhile."""

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from datamodules.checks import is_finite
from datamodules.environments.base import Environment
from datamodules.guard import Failure, attempt, run_all
from datamodules.rewards.functions import RewardError, finite_number
from datamodules.seeding import derive_seed
from datamodules.types import Observation, Policy, Response, Rollout, StepResult, Trajectory

SHOWN_FAILURES = 8
"""Failed episodes of an environment that are shown; others are counted."""


class EpisodeError(RuntimeError):
    """An environment raised, hung or returned no number; the message shows the episode."""


def play(policy: Policy, env: Environment, starts: Sequence[int], seeds: Sequence[int]) -> Rollout:
    """Play whole episodes with the current policy, and score them while it evaluates itself.

    Args:
        starts: starting state of each episode.
        seeds: of each episode's random stream.

    Raises:
        EpisodeError: an episode failed and ``env.on_error`` is ``raise``.
    """
    began = time.perf_counter()
    episodes, trajectories = act_out(policy, env, starts, seeds)
    sampled = time.perf_counter()
    with ThreadPoolExecutor(1, "score") as pool:
        scored = pool.submit(score, env, episodes, trajectories)
        evaluation = policy.evaluate(trajectories)
        scored.result()
    if any(t.failed for t in trajectories):  # found out only after it was evaluated
        evaluation = evaluation.without([t.failed for t in trajectories])
    seconds = {"rollout": sampled - began, "evaluate": time.perf_counter() - sampled}
    return Rollout(trajectories, evaluation, seconds, starts)


def act_out(
    policy: Policy, env: Environment, starts: Sequence[int], seeds: Sequence[int]
) -> tuple[list[Environment], list[Trajectory]]:
    """Episodes taken to their end, not yet scored."""
    episodes = [_forked(env) for _ in starts]
    trajectories = [Trajectory([], [], [], [], False, 0.0) for _ in starts]
    observations = _reset(env, episodes, starts, trajectories)
    live = [i for i, trajectory in enumerate(trajectories) if not trajectory.done]
    turn = 0
    while live:
        responses = policy.act(
            [observations[i] for i in live],
            seeds=[derive_seed(seeds[i], turn) for i in live],
            env=env,
        )
        calls = []
        for i, response in zip(live, responses, strict=True):
            _record(trajectories[i], observations[i], response)
            calls.append(partial(episodes[i].respond, torch.tensor(response.tokens)))
        for i, result in zip(live, _guarded(calls, env.timeout_s), strict=True):
            result = _checked(result)
            if isinstance(result, Failure):
                _fail(env, trajectories[i], result)
            else:
                _take(trajectories[i], result)
                if result.next_observation is not None:
                    observations[i] = result.next_observation
        live = [i for i in live if not trajectories[i].done]
        for i in live:
            if not policy.fits(observations[i], env):  # its context has no room for another turn
                trajectories[i].done, trajectories[i].finish_reason = True, "length"
                trajectories[i].metrics["truncated"] = 1.0
        live = [i for i in live if not trajectories[i].done]
        turn += 1
    return episodes, trajectories


def score(
    env: Environment, episodes: Sequence[Environment], trajectories: Sequence[Trajectory]
) -> None:
    """Add final rewards and metrics to the trajectories, as one batch where that is possible."""
    pairs = [(e, t) for e, t in zip(episodes, trajectories, strict=True) if not t.failed]
    if not pairs:
        return
    for (_, trajectory), result in zip(pairs, _scores(env, [e for e, _ in pairs]), strict=True):
        result = _checked_score(result)
        if isinstance(result, Failure):
            _fail(env, trajectory, result)
            continue
        reward, metrics = result
        trajectory.rewards[-1] += float(reward)
        trajectory.total_reward = sum(trajectory.rewards)
        trajectory.metrics |= metrics


def require_some(
    env: Environment,
    trajectories: Sequence[Trajectory],
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Check that something is left to learn from.

    Args:
        total: sum over all processes.

    Raises:
        EpisodeError: all episodes failed, in every process.
    """
    intact = sum(not trajectory.failed for trajectory in trajectories)
    counts = total(torch.tensor([float(intact), float(len(trajectories))]))
    if counts[0] == 0 and counts[1] > 0:
        raise EpisodeError(
            f"all {int(counts[1])} episodes of {type(env).__name__} failed, so there is nothing"
            " to learn from; see the warnings above"
        )


def _reset(
    env: Environment,
    episodes: Sequence[Environment],
    starts: Sequence[int],
    trajectories: list[Trajectory],
) -> list[Observation]:
    """The first observations; the trajectory of an episode that cannot begin has failed."""
    calls = [partial(e.reset, i) for e, i in zip(episodes, starts, strict=True)]
    observations = _guarded(calls, env.timeout_s)
    for i, result in enumerate(observations):
        if not isinstance(result, Failure | Observation):
            result = Failure(TypeError(f"reset returned {result!r}, which is no Observation"))
        if isinstance(result, Failure):
            if env.on_error == "raise" and isinstance(result.error, ValueError):
                raise result.error  # the environment says what is wrong with it
            trajectories[i] = _unreached(starts[i])
            observations[i] = trajectories[i].observations[0]
            _fail(env, trajectories[i], result)
    return observations


def _forked(env: Environment) -> Environment:
    """A fork of ``env``, which is another environment."""
    name, other = type(env).__name__, attempt(env.fork)
    if isinstance(other, Failure):
        raise EpisodeError(f"{name}.fork raised {other}") from other.error
    if not isinstance(other, Environment) or other is env:
        said = "the environment itself" if other is env else f"{other!r}"
        raise EpisodeError(
            f"{name}.fork returned {said}: it must return another environment of the same task,"
            " as copy.copy(self) is"
        )
    return other


def _unreached(start: int) -> Trajectory:
    """Of a starting state that ``reset`` did not bring about; its tokens mean nothing."""
    token = torch.zeros(1, dtype=torch.long)
    observation = Observation(token, torch.ones_like(token), f"(starting state {start})")
    return Trajectory([observation], [token], [0.0], [torch.zeros(1)], True, 0.0)


def _scores(env: Environment, episodes: Sequence[Environment]) -> list[Any]:
    whole: BaseException | None = None
    if env.timeout_s is None:
        scores = attempt(lambda: env.score(episodes))
        if not isinstance(scores, Failure):
            return _only(env, scores, len(episodes))
        whole = scores.error
        if isinstance(whole, RewardError) and env.on_error == "raise":
            raise whole  # it shows the culprit already
    results = _guarded([partial(env.score, [e]) for e in episodes], env.timeout_s)
    failed = any(isinstance(result, Failure) for result in results)
    if whole is not None and env.on_error == "raise" and not failed:
        what = f"{type(env).__name__}.score raised {Failure(whole)}"
        raise EpisodeError(f"{what}, of all episodes together alone") from whole
    return [r if isinstance(r, Failure) else _only(env, r, 1)[0] for r in results]


def _only(env: Environment, scores: Any, count: int) -> list[Any]:
    """``scores`` as a list of ``count``."""
    results = attempt(lambda: list(scores))
    if isinstance(results, Failure):
        raise EpisodeError(
            f"{type(env).__name__}.score returned {scores!r}: it must return a list of (reward,"
            " dict of metrics), one an episode"
        )
    if len(results) != count:
        raise EpisodeError(
            f"{type(env).__name__}.score returned {len(results)} results for {count} episodes"
        )
    return results


def _guarded(calls: Sequence[Callable[[], Any]], timeout_s: float | None) -> list[Any]:
    if timeout_s is not None:
        return run_all(calls, timeout_s=timeout_s)
    return [attempt(call) for call in calls]  # `env.on_error` decides


def _fail(env: Environment, trajectory: Trajectory, failure: Failure) -> None:
    trajectory.failed = trajectory.done = True
    hint = " (env.timeout_s)" if isinstance(failure.error, TimeoutError) else ""
    message = (
        f"an episode of {type(env).__name__} failed: {failure}{hint}\n"
        f"  prompt:   {trajectory.observations[0].prompt!r}\n"
        f"  response: {trajectory.actions[-1].tolist()} (token ids of its last turn)"
    )
    if env.on_error == "raise":
        raise EpisodeError(f"{message}\nenv.on_error=skip leaves it out") from failure.error
    env.num_failed += 1
    if env.num_failed <= SHOWN_FAILURES:
        warnings.warn(f"{message}\nIt is left out (env.on_error=skip).", stacklevel=2)
    elif env.num_failed == SHOWN_FAILURES + 1:
        warnings.warn("further failed episodes are counted only (rollout/failed)", stacklevel=2)


def _record(trajectory: Trajectory, observation: Observation, response: Response) -> None:
    trajectory.observations.append(observation)
    trajectory.actions.append(torch.tensor(response.tokens))
    trajectory.logprobs.append(torch.tensor(response.logprobs))
    trajectory.rewards.append(0.0)
    trajectory.finish_reason = response.finish_reason
    trajectory.kept_mass += response.kept_mass


def _checked_score(result: Any) -> tuple[float, dict[str, Any]] | Failure:
    """What ``score`` returned for one episode, if it can be used."""
    if isinstance(result, Failure):
        return result
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return Failure(TypeError(f"score gave {result!r}, expected (reward, dict of metrics)"))
    if finite_number(result[0]) is None:
        return Failure(ValueError(f"the reward {result[0]!r} is no finite number"))
    return _metrics_wrong(result[1]) or result


def _metrics_wrong(metrics: Any) -> Failure | None:
    """A failure where a metric is no number: means are taken of them."""
    for name, value in metrics.items():
        if not isinstance(name, str) or not (isinstance(value, bool) or is_finite(value)):
            wrong = f"the metric {name!r}={value!r} is no finite number: leave it out"
            return Failure(ValueError(wrong))
    return None


def _checked(result: Any) -> StepResult | Failure:
    """What ``respond`` returned, if it can be gone on with."""
    if isinstance(result, Failure):
        return result
    if not isinstance(result, StepResult):
        return Failure(TypeError(f"respond returned {result!r}, which is no StepResult"))
    if finite_number(result.reward) is None:
        return Failure(ValueError(f"the reward {result.reward!r} is no finite number"))
    if not result.done and result.next_observation is None:
        return Failure(ValueError("the episode is not done, and there is no next_observation"))
    return _metrics_wrong(result.metrics) or result


def _take(trajectory: Trajectory, result: StepResult) -> None:
    trajectory.rewards[-1] += result.reward
    trajectory.done = result.done
    trajectory.metrics |= result.metrics
