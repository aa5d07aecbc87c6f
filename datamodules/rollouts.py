"""RolloutDataModule: an environment and the policy in training -> minibatches.

One Lightning epoch is one iteration: play ``batch_size`` episodes with the policy as it is now,
then go over them ``epochs`` times in shuffled minibatches. All randomness is a function of
(seed, iteration, episode), so a resumed run needs no random states, and the number of processes
changes neither prompts nor texts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import lightning as L
import torch

from datamodules.environments.base import Environment, Trajectory
from datamodules.experience import Experience, Minibatch
from datamodules.prompts import Prompt, gather_prompts
from datamodules.seeding import derive_seed, seed_all

EVALUATION = 2**31 - 1
"""Stands for the iteration in the seeds of evaluation episodes: the same texts every time."""


class RolloutDataModule(L.LightningDataModule):
    """Episodes of an environment as training data for an online algorithm.

    The algorithm is ``trainer.lightning_module``; it must have ``act``, ``evaluate`` and
    ``experience`` (see ``rlmodules.ppo.PPO``).

    Args:
        env: an environment that has its own prompts; or what makes one, called as
            ``env(tokenizer=..., prompts=[...])``.
        prompts, path: training prompts, or where they are read from (``load_prompts``).
        eval_prompts, eval_path: held-out prompts; without them ``eval_size`` of the training ones
            are held out.
        eval_size: held-out prompts to take from the training ones, or at most to evaluate on;
            0 evaluates nothing.
        prompt_column, split, chat: see ``load_prompts``.
        batch_size: episodes an iteration, over all processes.
        mini_batch_size: episodes a backward pass, over all processes.
        epochs: passes over each iteration's episodes.
        gradient_accumulation_steps: backward passes an optimizer step, as the Trainer is told.
        eval_batch_size: held-out episodes played at once, over all processes.
        seed: of prompts' order, of texts and of minibatches.
    """

    def __init__(
        self,
        env: Callable[..., Environment] | Environment,
        *,
        prompts: Sequence[Any] | None = None,
        path: str | None = None,
        eval_prompts: Sequence[Any] | None = None,
        eval_path: str | None = None,
        eval_size: int = 64,
        prompt_column: str | None = None,
        split: str = "train",
        chat: bool = False,
        batch_size: int = 16,
        mini_batch_size: int = 4,
        epochs: int = 4,
        gradient_accumulation_steps: int = 1,
        eval_batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(env, Environment) and (prompts is None) == (path is None):
            raise ValueError("give either data.prompts (a list) or data.path (a file), not both")
        self.env, self.eval_env = env, None
        self.prompts, self.path = prompts, path
        self.eval_prompts, self.eval_path, self.eval_size = eval_prompts, eval_path, eval_size
        self.read = {"column": prompt_column, "split": split, "chat": chat}
        self.batch_size, self.mini_batch_size, self.epochs = batch_size, mini_batch_size, epochs
        self.accumulate = gradient_accumulation_steps
        self.eval_batch_size = eval_batch_size
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Read the prompts and make the environments, once."""
        if isinstance(self.env, Environment):
            return
        train, held_out = self._load()
        make = partial(self.env, tokenizer=self.trainer.lightning_module.tokenizer)
        self.env = make(prompts=train)
        if held_out:
            self.eval_env = make(prompts=held_out)
        else:
            self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> "RolloutStream":
        return RolloutStream(self)

    def val_dataloader(self) -> "EvaluationStream | list":
        return [] if self.eval_env is None else EvaluationStream(self)

    def play(self, env: Environment, starts: Sequence[int], seeds: Sequence[int]) -> "Rollout":
        """Play whole episodes with the current policy, and score them while it evaluates itself.

        Args:
            starts: starting state of each episode.
            seeds: of each episode's random stream.
        """
        module = self.trainer.lightning_module
        began = time.perf_counter()
        episodes = [env.fork() for _ in starts]
        observations = [e.reset(i) for e, i in zip(episodes, starts, strict=True)]
        trajectories = [Trajectory([], [], [], [], False, 0.0, {}) for _ in starts]
        live = list(range(len(episodes)))
        turn = 0
        while live:
            responses = module.act(
                [observations[i] for i in live],
                seeds=[derive_seed(seeds[i], turn) for i in live],
                env=env,
            )
            for i, response in zip(live, responses, strict=True):
                result = episodes[i].respond(torch.tensor(response.tokens))
                _record(trajectories[i], observations[i], response, result)
                observations[i] = result.next_observation
            live = [i for i in live if not trajectories[i].done]
            turn += 1
        sampled = time.perf_counter()
        with ThreadPoolExecutor(1, "score") as pool:
            scores = pool.submit(env.score, episodes)
            evaluation = module.evaluate(trajectories)
            for trajectory, (reward, metrics) in zip(trajectories, scores.result(), strict=True):
                trajectory.rewards[-1] += reward
                trajectory.total_reward = sum(trajectory.rewards)
                trajectory.metrics |= metrics
        seconds = {"rollout": sampled - began, "evaluate": time.perf_counter() - sampled}
        return Rollout(trajectories, evaluation, seconds)

    def _load(self) -> tuple[list[Prompt], list[Prompt]]:
        train = gather_prompts(self.prompts, self.path, **self.read)
        if self.eval_size == 0:
            return train, []
        if self.eval_prompts is not None or self.eval_path is not None:
            held_out = gather_prompts(self.eval_prompts, self.eval_path, **self.read)
            return train, held_out[: self.eval_size]
        if len(train) <= self.eval_size:
            raise ValueError(
                f"data.eval_size={self.eval_size} would hold out all {len(train)} prompts:"
                " lower it, set it to 0, or give data.eval_path"
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(train), generator=generator).tolist()
        held_out = [train[i] for i in order[: self.eval_size]]
        return [train[i] for i in sorted(order[self.eval_size :])], held_out


class Rollout:
    """Played and scored episodes, what the policy says of them, and the seconds it took.

    (A plain class: Lightning would look into a tuple or a dataclass and move what is inside.)
    """

    def __init__(
        self, trajectories: list[Trajectory], evaluation: Any, seconds: dict[str, float]
    ) -> None:
        self.trajectories, self.evaluation, self.seconds = trajectories, evaluation, seconds


class RolloutStream:
    """The train loader: iterating plays one iteration's episodes and yields its minibatches.

    It has a length, so Lightning never prefetches, which would sample from a policy of the past.
    """

    def __init__(self, data: RolloutDataModule) -> None:
        self.data = data
        world = data.trainer.world_size
        for name in ("batch_size", "mini_batch_size"):
            if getattr(data, name) % world:
                raise ValueError(
                    f"algo.{name}={getattr(data, name)} must be divisible by the {world} processes:"
                    " it counts the episodes of all of them together"
                )
        self.per_epoch = data.batch_size // data.mini_batch_size
        if data.batch_size % data.mini_batch_size or self.per_epoch % data.accumulate:
            raise ValueError(
                f"algo.batch_size={data.batch_size} must be a multiple of mini_batch_size x"
                f" gradient_accumulation_steps = {data.mini_batch_size} x {data.accumulate}"
            )
        self.position = 0
        self.experience: Experience | None = None
        self._resumed = False

    def __len__(self) -> int:
        return self.data.epochs * self.per_epoch

    def __iter__(self) -> Iterator[Minibatch]:
        trainer = self.data.trainer
        iteration = trainer.current_epoch
        seed_all(derive_seed(self.data.seed, iteration, trainer.global_rank))
        if not self._resumed:
            self.position = 0
            self.experience = self._collect(iteration)
        self._resumed = False
        schedule = self._schedule(iteration)
        for rows, num_actions in schedule[self.position :]:
            self.position += 1
            yield self.experience.minibatch(rows, num_actions)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an iteration needs; empty between iterations."""
        if self.experience is None or self.position in (0, len(self)):
            return {}
        return {"position": self.position, "experience": self.experience.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.position = state["position"]
            self.experience = Experience(**state["experience"])
            self._resumed = True

    def _collect(self, iteration: int) -> Experience:
        data, trainer = self.data, self.data.trainer
        module = trainer.lightning_module
        share = data.batch_size // trainer.world_size
        first = iteration * data.batch_size + trainer.global_rank * share
        episodes = range(first, first + share)
        starts = [_nth_start(e, len(data.env), data.seed) for e in episodes]
        seeds = [derive_seed(data.seed, iteration, e) for e in episodes]
        module.eval()  # Lightning runs loaders in train mode, with gradients on
        with torch.no_grad():
            rollout = data.play(data.env, starts, seeds)
            experience = module.experience(rollout).cpu()
        module.train()
        return experience

    def _schedule(self, iteration: int) -> list[tuple[list[int], float]]:
        """(episodes, divisor of the loss) of each minibatch of the iteration."""
        data, trainer = self.data, self.data.trainer
        size = data.mini_batch_size // trainer.world_size
        seed = derive_seed(data.seed, iteration, trainer.global_rank)
        generator = torch.Generator().manual_seed(seed)
        batches: list[list[int]] = []
        for _ in range(data.epochs):
            order = torch.randperm(len(self.experience), generator=generator).tolist()
            batches += [order[i : i + size] for i in range(0, len(order), size)]
        counts = torch.tensor([self.experience.num_actions(rows) for rows in batches]).float()
        counts = trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum")
        # Lightning divides by the accumulation and DDP by the number of processes.
        share = data.accumulate * trainer.world_size
        windows = counts.view(-1, data.accumulate).sum(1).repeat_interleave(data.accumulate)
        return list(zip(batches, (windows / share).tolist(), strict=True))


class EvaluationStream:
    """The validation loader: plays the held-out episodes, each process its share of them."""

    def __init__(self, data: RolloutDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return -(-len(self.data.eval_env) // self.data.eval_batch_size)

    def __iter__(self) -> Iterator[Rollout]:
        data, trainer = self.data, self.data.trainer
        env = data.eval_env
        for start in range(0, len(env), data.eval_batch_size):
            batch = range(start, min(start + data.eval_batch_size, len(env)))
            mine = [i for i in batch if i % trainer.world_size == trainer.global_rank]
            seeds = [derive_seed(data.seed, EVALUATION, i) for i in mine]
            yield data.play(env, mine, seeds) if mine else Rollout([], None, {})


def _nth_start(episode: int, count: int, seed: int) -> int:
    """Starting state of the n-th episode ever: pass after pass over all, each in its own order."""
    generator = torch.Generator().manual_seed(derive_seed(seed, episode // count))
    return int(torch.randperm(count, generator=generator)[episode % count])


def _record(trajectory: Trajectory, observation: Any, response: Any, result: Any) -> None:
    trajectory.observations.append(observation)
    trajectory.actions.append(torch.tensor(response.tokens))
    trajectory.logprobs.append(torch.tensor(response.logprobs))
    trajectory.rewards.append(result.reward)
    trajectory.done = result.done
    trajectory.metrics |= result.metrics
    trajectory.metrics["finish_reason"] = response.finish_reason
    kept = trajectory.metrics.get("kept_mass", [])
    trajectory.metrics["kept_mass"] = [*kept, *response.kept_mass]
