"""The loaders of ``RolloutDataModule``: one Lightning epoch is one iteration.

Play ``batch_size`` episodes with the policy as it is now, then go over them ``epochs`` times in
shuffled minibatches. All randomness is a function of (seed, iteration, episode), so a resumed run
needs no random states, and the number of processes changes neither prompts nor texts (but for
replaced groups, ``max_resamples``: a process knows only its own).
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from datamodules.experience import Experience, Minibatch
from datamodules.rollouts.episodes import act_out, play, require_some, score
from datamodules.seeding import derive_seed, seed_all
from datamodules.types import Rollout, Trajectory, as_policy

EVALUATION = 2**31 - 1
"""Stands for the iteration in the seeds of evaluation episodes: the same texts every time."""


class RolloutStream:
    """The train loader: iterating plays one iteration's episodes and yields its minibatches.

    It has a length, so Lightning never prefetches, which would sample from a policy of the past.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        world = data.trainer.world_size
        for name, size in (("batch_size", data.num_generations), ("mini_batch_size", 1)):
            if getattr(data, name) % (size * world):
                raise ValueError(
                    f"algo.{name}={getattr(data, name)} must be divisible by the {world} processes"
                    + (f" x num_generations = {size * world}" if size > 1 else "")
                    + ": it counts the episodes of all of them together"
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
        module = as_policy(self.data.trainer.lightning_module)
        module.train(False)  # Lightning runs loaders in train mode, with gradients on
        with torch.no_grad():
            if self.data.max_resamples:
                rollout = self._resampled(iteration)
            else:
                rollout = play(module, self.data.env, *self._episodes(iteration))
            require_some(self.data.env, rollout.trajectories, module.sum_over_ranks)
            experience = module.experience(rollout).cpu()
        module.train()
        return experience

    def _episodes(self, iteration: int, *draw: int) -> tuple[list[int], list[int]]:
        """Starting states and seeds of this process's share of an iteration's episodes.

        Args:
            draw: number of the draw, where there are several in an iteration.
        """
        data, size = self.data, self.data.num_generations
        share = data.batch_size // data.trainer.world_size
        first = iteration * data.batch_size + data.trainer.global_rank * share
        seed = derive_seed(data.seed, *draw) if draw else data.seed
        starts = [
            data.train_starts[_nth_start(e // size, len(data.train_starts), seed)]
            for e in range(first, first + share)
        ]
        return starts, [derive_seed(seed, iteration, e) for e in range(first, first + share)]

    def _resampled(self, iteration: int) -> Rollout:
        """Groups of unequal rewards as far as ``max_resamples`` more draws yield them."""
        data, size = self.data, self.data.num_generations
        module = data.trainer.lightning_module
        began = time.perf_counter()
        groups: list[tuple[list[int], list[Trajectory]]] = []
        wanted = resampled = 0
        for draw in range(data.max_resamples + 1):
            starts, seeds = self._episodes(iteration, *([draw] if draw else []))
            wanted = wanted or len(starts) // size
            missing = wanted - sum(_differ(group) for _, group in groups)
            if not missing:
                break
            starts, seeds = starts[: missing * size], seeds[: missing * size]
            if draw:
                taken = {start for some, _ in groups for start in some}
                starts = _others(starts, taken, data.train_starts, size)
            episodes, played = act_out(module, data.env, starts, seeds)
            score(data.env, episodes, played)
            resampled += missing if draw else 0
            groups += [
                (starts[i : i + size], played[i : i + size]) for i in range(0, len(played), size)
            ]
        groups.sort(key=lambda group: not _differ(group[1]))  # stable: the telling ones first
        starts = [start for some, _ in groups[:wanted] for start in some]
        trajectories = [t for _, group in groups[:wanted] for t in group]
        sampled = time.perf_counter()
        evaluation = module.evaluate(trajectories)
        seconds = {"rollout": sampled - began, "evaluate": time.perf_counter() - sampled}
        return Rollout(trajectories, evaluation, seconds, starts, resampled)

    def _schedule(self, iteration: int) -> list[tuple[list[int], float]]:
        """(episodes, divisor of the loss) of each minibatch of the iteration."""
        data, trainer = self.data, self.data.trainer
        size = data.mini_batch_size // trainer.world_size
        seed = derive_seed(data.seed, iteration, trainer.global_rank)
        generator = torch.Generator().manual_seed(seed)
        batches: list[list[int]] = []
        for _ in range(data.epochs):
            # Groups stay together: what their episodes begin with alike is computed once.
            group = data.num_generations
            drawn = torch.randperm(len(self.experience) // group, generator=generator).tolist()
            order = [g * group + i for g in drawn for i in range(group)]
            batches += [order[i : i + size] for i in range(0, len(order), size)]
        counts = torch.tensor([self.experience.num_actions(rows) for rows in batches]).float()
        counts = trainer.strategy.reduce(counts.to(trainer.strategy.root_device), reduce_op="sum")
        # Lightning divides by the accumulation and DDP by the number of processes.
        share = data.accumulate * trainer.world_size
        windows = counts.view(-1, data.accumulate).sum(1).repeat_interleave(data.accumulate)
        return list(zip(batches, (windows / share).tolist(), strict=True))


class EvaluationStream:
    """The validation loader: plays the held-out episodes, each process its share of them."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.per_batch = max(data.eval_batch_size // data.eval_generations, 1)

    def __len__(self) -> int:
        return -(-len(self.data.eval_starts) // self.per_batch)

    def __iter__(self) -> Iterator[Rollout]:
        data, trainer = self.data, self.data.trainer
        repeats = data.eval_generations
        for first in range(0, len(data.eval_starts), self.per_batch):
            batch = range(first, min(first + self.per_batch, len(data.eval_starts)))
            mine = [i for i in batch if i % trainer.world_size == trainer.global_rank]
            starts = [data.eval_starts[i] for i in mine for _ in range(repeats)]
            episodes = [i * repeats + k for i in mine for k in range(repeats)]
            seeds = [derive_seed(data.seed, EVALUATION, e) for e in episodes]
            policy = as_policy(trainer.lightning_module)
            yield play(policy, data.env, starts, seeds) if mine else Rollout.empty()


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
    return len({t.total_reward for t in group if not t.failed}) > 1


def _nth_start(episode: int, count: int, seed: int) -> int:
    """Starting state of the n-th episode ever: pass after pass over all, each in its own order."""
    generator = torch.Generator().manual_seed(derive_seed(seed, episode // count))
    return int(torch.randperm(count, generator=generator)[episode % count])
