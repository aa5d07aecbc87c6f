"""The loaders of ``RolloutDataModule``: one Lightning epoch is one iteration.

Play ``batch_size`` episodes with the policy as it is now, then go over them ``epochs`` times in
shuffled minibatches. All randomness is a function of (seed, iteration, episode), so a resumed run
needs no random states, and the number of processes changes neither prompts nor texts (but for
replaced groups, ``max_resamples``: a process knows only its own).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from datamodules.environments.base import Environment
from datamodules.experience import Experience, Minibatch
from datamodules.processes import gather
from datamodules.rollouts.episodes import act_out, play, require_some, score
from datamodules.seeding import derive_seed, seed_all
from datamodules.types import Rollout, Trajectory, as_policy

EVALUATION = 2**31 - 1
"""Stands for the iteration in the seeds of evaluation episodes: the same texts every time."""


@dataclass(frozen=True)
class IterationPlan:
    """How many episodes an iteration has, and how it goes over them; see ``RolloutDataModule``."""

    batch_size: int
    num_generations: int
    max_resamples: int
    mini_batch_size: int
    epochs: int
    accumulate: int
    """Backward passes an optimizer step."""
    seed: int

    def check(self, world: int) -> None:
        """Check that ``world`` processes can share the episodes.

        Raises:
            ValueError: they cannot.
        """
        for name, unit in (("batch_size", self.num_generations), ("mini_batch_size", 1)):
            if getattr(self, name) % (unit * world):
                raise ValueError(
                    f"algo.{name}={getattr(self, name)} must be divisible by the {world} processes"
                    + (f" x num_generations = {unit * world}" if unit > 1 else "")
                    + ": it counts the episodes of all of them together"
                )
        if self.batch_size % (self.mini_batch_size * self.accumulate):
            raise ValueError(
                f"algo.batch_size={self.batch_size} must be a multiple of mini_batch_size x"
                f" gradient_accumulation_steps = {self.mini_batch_size} x {self.accumulate}"
            )


class TrainEpisodes:
    """The train loader: iterating plays one iteration's episodes and yields its minibatches.

    It has a length, so Lightning never prefetches, which would sample from a policy of the past.

    Args:
        trainer: whose ``lightning_module`` is the policy.
        env: what the episodes are of.
        starts: starting states to train on.
        plan: sizes and seed.

    Raises:
        ValueError: the processes cannot share the episodes.
    """

    def __init__(
        self, trainer: L.Trainer, env: Environment, starts: Sequence[int], plan: IterationPlan
    ) -> None:
        plan.check(trainer.world_size)
        self.trainer, self.env, self.starts, self.plan = trainer, env, starts, plan
        self.position = 0
        self.experience: Experience | None = None
        self._resumed: int | None = None  # the iteration that a checkpoint stands in

    def __len__(self) -> int:
        return self.plan.epochs * (self.plan.batch_size // self.plan.mini_batch_size)

    def __iter__(self) -> Iterator[Minibatch]:
        iteration = self.trainer.current_epoch
        seed_all(derive_seed(self.plan.seed, iteration, self.trainer.global_rank))
        if self.experience is None or self._resumed != iteration:
            self.position, self.experience = 0, self._collect(iteration)
        self._resumed = None
        minibatches = self._minibatches(self.experience, iteration)
        for rows, num_actions in minibatches[self.position :]:
            self.position += 1
            yield self.experience.minibatch(rows, num_actions)

    def state_dict(self) -> dict[str, Any]:
        """Where an iteration goes on, and what each process learns from in it."""
        if self.experience is None:
            return {}
        return {"position": self.position, "experiences": gather(self.experience.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the checkpoint is of another number of processes, within an iteration.
        """
        experiences, world = state["experiences"], self.trainer.world_size
        if len(experiences) != world:
            raise ValueError(
                f"the checkpoint stands within an iteration of {len(experiences)} processes, whose"
                f" episodes {world} cannot share: go on with trainer.devices={len(experiences)}"
            )
        self.position, self._resumed = state["position"], self.trainer.current_epoch
        self.experience = Experience(**experiences[self.trainer.global_rank])

    def _collect(self, iteration: int) -> Experience:
        policy = as_policy(self.trainer.lightning_module)
        policy.train(False)  # Lightning runs loaders in train mode, with gradients on
        with torch.no_grad(), policy.whole():
            if self.plan.max_resamples:
                rollout = self._resampled(iteration)
            else:
                rollout = play(policy, self.env, *self._episodes(iteration))
            require_some(self.env, rollout.trajectories, policy.sum_over_ranks)
            experience = policy.experience(rollout).cpu()
        policy.train()
        return experience

    def _episodes(self, iteration: int, *draw: int) -> tuple[list[int], list[int]]:
        """Starting states and seeds of this process's share of an iteration's episodes.

        Args:
            draw: number of the draw, where there are several in an iteration.
        """
        plan, size = self.plan, self.plan.num_generations
        share = plan.batch_size // self.trainer.world_size
        first = iteration * plan.batch_size + self.trainer.global_rank * share
        seed = derive_seed(plan.seed, *draw) if draw else plan.seed
        starts = [
            self.starts[nth_start(episode // size, len(self.starts), seed)]
            for episode in range(first, first + share)
        ]
        return starts, [derive_seed(seed, iteration, e) for e in range(first, first + share)]

    def _resampled(self, iteration: int) -> Rollout:
        """Groups of unequal rewards as far as ``max_resamples`` more draws yield them."""
        policy, size = as_policy(self.trainer.lightning_module), self.plan.num_generations
        began = time.perf_counter()
        groups: list[tuple[list[int], list[Trajectory]]] = []
        wanted = resampled = 0
        for draw in range(self.plan.max_resamples + 1):
            starts, seeds = self._episodes(iteration, *([draw] if draw else []))
            wanted = wanted or len(starts) // size
            missing = wanted - sum(_differ(group) for _, group in groups)
            if not missing:
                break
            starts, seeds = starts[: missing * size], seeds[: missing * size]
            if draw:
                taken = {start for some, _ in groups for start in some}
                starts = _others(starts, taken, self.starts, size)
            episodes, trajectories = act_out(policy, self.env, starts, seeds)
            score(self.env, episodes, trajectories)
            resampled += missing if draw else 0
            firsts = range(0, len(trajectories), size)
            groups += [(starts[i : i + size], trajectories[i : i + size]) for i in firsts]
        groups.sort(key=lambda group: not _differ(group[1]))  # stable: the telling ones first
        starts = [start for some, _ in groups[:wanted] for start in some]
        trajectories = [t for _, group in groups[:wanted] for t in group]
        sampled = time.perf_counter()
        evaluation = policy.evaluate(trajectories)
        seconds = {"rollout": sampled - began, "evaluate": time.perf_counter() - sampled}
        weights = self.env.reward_weights
        return Rollout(trajectories, evaluation, seconds, starts, resampled, weights)

    def _minibatches(self, experience: Experience, iteration: int) -> list[tuple[list[int], float]]:
        """(episodes, divisor of the loss) of each minibatch of the iteration."""
        plan, trainer = self.plan, self.trainer
        size = plan.mini_batch_size // trainer.world_size
        seed = derive_seed(plan.seed, iteration, trainer.global_rank)
        generator = torch.Generator().manual_seed(seed)
        batches: list[list[int]] = []
        for _ in range(plan.epochs):
            # Groups stay together: what their episodes begin with alike is computed once.
            group = plan.num_generations
            drawn = torch.randperm(len(experience) // group, generator=generator).tolist()
            order = [g * group + i for g in drawn for i in range(group)]
            batches += [order[i : i + size] for i in range(0, len(order), size)]
        counts = torch.tensor([experience.num_actions(rows) for rows in batches]).float()
        counts = trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum")
        # Lightning divides by the accumulation and DDP by the number of processes.
        share = plan.accumulate * trainer.world_size
        windows = counts.view(-1, plan.accumulate).sum(1).repeat_interleave(plan.accumulate)
        return list(zip(batches, (windows / share).tolist(), strict=True))


class HeldOutEpisodes:
    """The validation loader: yields rollouts of held-out starting states, each process its share.

    Args:
        trainer: whose ``lightning_module`` is the policy.
        env: what the episodes are of.
        starts: held-out starting states.
        generations: episodes of each.
        batch_size: episodes at once, over all processes.
        seed: of their texts.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        env: Environment,
        starts: Sequence[int],
        generations: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.trainer, self.env, self.starts = trainer, env, starts
        self.generations, self.seed = generations, seed
        self.per_batch = max(batch_size // generations, 1)

    def __len__(self) -> int:
        return -(-len(self.starts) // self.per_batch)

    def __iter__(self) -> Iterator[Rollout]:
        trainer, repeats = self.trainer, self.generations
        policy = as_policy(trainer.lightning_module)
        for first in range(0, len(self.starts), self.per_batch):
            batch = range(first, min(first + self.per_batch, len(self.starts)))
            mine = [i for i in batch if i % trainer.world_size == trainer.global_rank]
            starts = [self.starts[i] for i in mine for _ in range(repeats)]
            episodes = [i * repeats + k for i in mine for k in range(repeats)]
            seeds = [derive_seed(self.seed, EVALUATION, e) for e in episodes]
            yield play(policy, self.env, starts, seeds) if mine else Rollout.empty()


def nth_start(episode: int, count: int, seed: int) -> int:
    """Starting state of the n-th episode ever: pass after pass over all, each in its own order."""
    generator = torch.Generator().manual_seed(derive_seed(seed, episode // count))
    return int(torch.randperm(count, generator=generator)[episode % count])


def _others(starts: Sequence[int], taken: set[int], known: Sequence[int], size: int) -> list[int]:
    """``starts`` of groups, with those ``taken`` or repeated exchanged, while there are others."""
    chosen: list[int] = []
    used = set(taken)
    spare = iter([start for start in known if start not in taken and start not in starts])
    for start in starts[::size]:
        if start in used:
            start = next(spare, start)
        used.add(start)
        chosen += [start] * size
    return chosen


def _differ(group: Sequence[Trajectory]) -> bool:
    """Whether the rewards of a group differ: equal ones tell nothing apart."""
    return len({t.total_reward for t in group if not (t.failed or t.unscored)}) > 1
