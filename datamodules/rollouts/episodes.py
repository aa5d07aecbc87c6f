"""Whole episodes, played by a policy and scored, whatever an environment does meanwhile."""

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

from datamodules.environments.base import Environment
from datamodules.guard import Failure, attempt, guarded, serving_main
from datamodules.rewards.devices import own_device
from datamodules.rewards.functions import RewardError
from datamodules.rollouts.results import checked, checked_score
from datamodules.seeding import derive_seed, undisturbed
from datamodules.types import Observation, Policy, Response, Rollout, StepResult, Trajectory

SHOWN_FAILURES = 8
"""Failed episodes of an environment that are shown; others are counted."""
PATIENCE = 3
"""Batches without any reward, from the first on, after which there will be none."""


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
    # Put back out here: the policy's own precision changes torch's default type meanwhile.
    with (
        undisturbed(own_device()),
        ThreadPoolExecutor(1, "score") as pool,
        serving_main() as serve_until,
    ):
        scored = pool.submit(_score, env, episodes, trajectories)
        evaluation = policy.evaluate(trajectories)
        serve_until(scored)
        scored.result()
    if any(t.failed for t in trajectories):  # found out only after it was evaluated
        evaluation = evaluation.without([t.failed for t in trajectories])
    seconds = {"rollout": sampled - began, "evaluate": time.perf_counter() - sampled}
    return Rollout(trajectories, evaluation, seconds, starts, reward_weights=env.reward_weights)


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
        for i, result in zip(live, guarded(calls, env.timeout_s), strict=True):
            result = checked(result)
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
    """Add final rewards and metrics to the trajectories, as one batch where that is possible.

    Whatever rewards do meanwhile to random numbers or to the working folder is undone.
    """
    with undisturbed(own_device()):
        _score(env, episodes, trajectories)


def _score(
    env: Environment, episodes: Sequence[Environment], trajectories: Sequence[Trajectory]
) -> None:
    pairs = [(e, t) for e, t in zip(episodes, trajectories, strict=True) if not t.failed]
    if not pairs:
        return
    scores = _scores(env, [e for e, _ in pairs])
    for (_, trajectory), result in zip(pairs, scores, strict=True):
        result = checked_score(result)
        if isinstance(result, Failure):
            _fail(env, trajectory, result)
            continue
        reward, metrics = result
        trajectory.unscored = reward is None
        trajectory.rewards[-1] += 0.0 if reward is None else float(reward)
        trajectory.total_reward = sum(trajectory.rewards)
        trajectory.metrics |= metrics
    _count_scored(env, [t for _, t in pairs if not t.failed])


def require_some(
    env: Environment,
    trajectories: Sequence[Trajectory],
    total: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Check that something is left to learn from, and that some reward applies to something.

    Args:
        total: sum over all processes.

    Raises:
        EpisodeError: all episodes failed, in every process; or no reward has applied to any so far,
            and there were ``PATIENCE`` batches of them.
    """
    intact = sum(not trajectory.failed for trajectory in trajectories)
    sizes = (intact, len(trajectories), env.num_scored, env.num_unscored)
    counts = total(torch.tensor(sizes, dtype=torch.float32))
    if counts[2] == 0 and counts[3] >= PATIENCE * counts[1] > 0:
        raise EpisodeError(
            f"no reward applies to any of the first {int(counts[3])} episodes (None for each), so"
            " there is nothing to learn from"
        )
    if counts[0] == 0 and counts[1] > 0:
        raise EpisodeError(
            f"all {int(counts[1])} episodes of {type(env).__name__} failed, so there is nothing"
            " to learn from; see the warnings above"
        )


def _count_scored(env: Environment, trajectories: Sequence[Trajectory]) -> None:
    """Count those that a reward applies to; a first batch without any is said."""
    unscored = sum(t.unscored for t in trajectories)
    if unscored and unscored == len(trajectories) and not (env.num_scored or env.num_unscored):
        warnings.warn(
            f"no reward applies to any of these {unscored} episodes (None for each): nothing is"
            f" learned from them\n  prompt:   {trajectories[0].observations[0].prompt!r}",
            stacklevel=2,
        )
    env.num_unscored += unscored
    env.num_scored += len(trajectories) - unscored


def _reset(
    env: Environment,
    episodes: Sequence[Environment],
    starts: Sequence[int],
    trajectories: list[Trajectory],
) -> list[Observation]:
    """The first observations; the trajectory of an episode that cannot begin has failed."""
    calls = [partial(e.reset, i) for e, i in zip(episodes, starts, strict=True)]
    observations = guarded(calls, env.timeout_s)
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
    results = guarded([partial(env.score, [e]) for e in episodes], env.timeout_s)
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


def _take(trajectory: Trajectory, result: StepResult) -> None:
    trajectory.rewards[-1] += result.reward
    trajectory.done = result.done
    trajectory.metrics |= result.metrics
