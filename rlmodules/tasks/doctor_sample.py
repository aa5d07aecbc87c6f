"""The texts that the doctor computes with, and the losses of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from datamodules.rollouts.episodes import play
from datamodules.seeding import derive_seed
from datamodules.types import sequence_of
from rlmodules.algorithms.online import OnlineModule
from rlmodules.tasks import doctor_checks as checks
from rlmodules.tasks.doctor_checks import Check


class Sample:
    """What there is to compute with.

    Args:
        groups: texts, those that begin alike together; one is shorter by half than another.
        accumulation: what that check says, of a limit.
    """

    def __init__(
        self,
        groups: list[list[Tensor]],
        accumulation: Callable[[float], Check],
        trajectories: list[Any] | None = None,
    ) -> None:
        longest = max((text for group in groups for text in group), key=len)
        self.groups = [*groups, [longest[: max(len(longest) // 2, 2)]]]
        self.accumulation, self.trajectories = accumulation, trajectories or []


def sample_of(module: Any, data: Any, count: int) -> Sample:
    """The first examples that would be trained on, or episodes of the first starting states."""
    return (
        _episodes(module, data, count)
        if isinstance(module, OnlineModule)
        else _rows(module, data, count)
    )


def _rows(module: Any, data: Any, count: int) -> Sample:
    dataset = data.train_dataset
    rows = list(range(min(count, len(dataset))))
    totals = dataset.totals(rows)

    def loss(part: list[int]) -> Callable[[], Tensor | None]:
        return lambda: module.losses(dataset.batch(part, totals, "train"))[0]

    def accumulation(limit: float) -> Check:
        if dataset.smallest_batch > 1:
            why = "the loss compares the examples of a batch: each backward pass has its own"
            return checks.skipped("accumulation", why)
        if getattr(module, "table", None) is not None:
            return checks.skipped("accumulation", "the reference is a table, made by the run")
        half = len(rows) // 2
        parts = [loss(rows[:half]), loss(rows[half:])]
        return checks.accumulation(module, loss(rows), parts, limit)

    return Sample([list(dataset[row].sequences) for row in rows], accumulation)


def _episodes(module: OnlineModule, data: Any, count: int) -> Sample:
    starts = [data.train_starts[i // 2 % len(data.train_starts)] for i in range(count)]
    with torch.no_grad():
        rollout = play(module, data.env, starts, [derive_seed(0, i) for i in range(count)])
    trajectories = rollout.trajectories

    def accumulation(limit: float) -> Check:
        generations = getattr(module.config, "num_generations", 1)
        if count % generations:
            why = f"task.texts={count} is no multiple of algo.num_generations={generations}"
            return checks.skipped("accumulation", why)
        experience, _ = module.learn_from(rollout)
        rows = list(range(len(experience)))
        actions, half = float(experience.num_actions(rows)), len(rows) // 2

        def loss(part: list[int]) -> Callable[[], Tensor | None]:
            batch = experience.minibatch(part, actions).to(module.device)
            return lambda: module.training_step(batch, 0)

        return checks.accumulation(module, loss(rows), [loss(rows[:half]), loss(rows[half:])],
                                   limit)  # fmt: skip

    texts = [sequence_of(trajectory)[0] for trajectory in trajectories]
    groups = [texts[i : i + 2] for i in range(0, len(texts), 2)]
    return Sample(groups, accumulation, list(trajectories))
