"""The texts that the doctor computes with, and the losses of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from datamodules.experience import Experience, Minibatch
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
    group, most = getattr(module.config, "num_generations", 1), module.config.mini_batch_size
    whole = -(-count // group) * group
    played = whole if whole <= most else count
    starts = [data.train_starts[i // 2 % len(data.train_starts)] for i in range(played)]
    with torch.no_grad():
        rollout = play(module, data.env, starts, [derive_seed(0, i) for i in range(played)])

    def accumulation(limit: float) -> Check:
        if played % group:
            why = f"{whole} episodes, for algo.num_generations={group}, are more than one pass"
            return checks.skipped("accumulation", f"{why} takes (algo.mini_batch_size={most})")
        if getattr(module.config, "loss_type", None) == "bnpo":
            return checks.skipped("accumulation", "algo.loss_type=bnpo is a mean of each pass")
        experience = _unlike(module.learn_from(rollout)[0])
        rows = list(range(len(experience)))
        actions = float(experience.num_actions(rows))

        def losses(*parts: list[int]) -> list[Callable[[], Tensor | None]]:
            """As a run has them: divisors are a pass's mean, and Lightning divides by passes."""
            share = 1 / len(parts)
            batches = [experience.minibatch(part, actions * share) for part in parts]
            return [partial(_step, module, batch.to(module.device), share) for batch in batches]

        cuts = 2 if len(rows) % 2 == 0 else len(rows)  # passes of a run are of equally many
        size = len(rows) // cuts
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return checks.accumulation(module, losses(rows)[0], losses(*parts), limit)

    trajectories = list(rollout.trajectories[:count])
    texts = [sequence_of(trajectory)[0] for trajectory in trajectories]
    groups = [texts[i : i + 2] for i in range(0, len(texts), 2)]
    return Sample(groups, accumulation, trajectories)


def _step(module: OnlineModule, batch: Minibatch, share: float) -> Tensor | None:
    loss = module.training_step(batch, 0)
    return None if loss is None else loss * share


def _unlike(experience: Experience) -> Experience:
    """One that something is learned from: were all rewarded alike, every second one was better."""
    if experience.advantages.any():
        return experience
    signs = torch.tensor([1.0, -1.0]).repeat(len(experience))[: len(experience), None]
    return replace(experience, advantages=signs.expand_as(experience.advantages))
