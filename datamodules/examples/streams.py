"""The order in which examples are learned from: whole optimizer steps of equally sized batches.

Everything is a function of (seed, epoch), so a resumed run needs a position only. The processes of
a distributed run take turns within every batch, so their number changes no batch (but the last
step of an epoch, where too few rows for all of them are left).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch

from datamodules.examples.dataset import ExampleBatch, ExampleDataset
from datamodules.seeding import derive_seed, seed_all

MEGABATCH = 8
"""Optimizer steps within which examples are sorted by length (at most a quarter of all): enough to
sort well, and few enough that each epoch has other batches."""


def optimizer_steps(
    lengths: Sequence[int],
    batch_size: int,
    accumulate: int,
    seed: int,
    world: int = 1,
    smallest: int = 1,
) -> list[list[list[int]]]:
    """One epoch: for each optimizer step its ``accumulate`` batches of row numbers.

    Rows of similar length share a batch; steps come in random order. All batches have
    ``batch_size`` rows, but the last step spreads what is left over its batches, so that every row
    is seen once and every step is whole.

    Args:
        smallest: rows that a process has of a batch, at least.

    Raises:
        ValueError: there are too few rows for one step.
    """
    window, least = batch_size * accumulate, accumulate * world * smallest
    if len(lengths) < least:
        each = f" of {smallest} rows at least" if smallest > 1 else ""
        raise ValueError(
            f"{len(lengths)} examples are too few for an optimizer step of {accumulate} batches"
            f"{each} over {world} processes: lower algo.gradient_accumulation_steps"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    chunk = max(min(MEGABATCH, len(lengths) // (4 * window)), 1) * window
    order = [
        row
        for start in range(0, len(order), chunk)
        for row in sorted(order[start : start + chunk], key=lambda r: lengths[r])
    ]
    windows = [order[start : start + window] for start in range(0, len(order), window)]
    if len(windows[-1]) < least:
        windows[-2:] = [windows[-2] + windows[-1]]
    shuffled = torch.randperm(len(windows), generator=generator).tolist()
    return [_split(windows[w], accumulate) for w in shuffled]


def _split(rows: list[int], parts: int) -> list[list[int]]:
    """``rows`` in ``parts`` runs whose sizes differ by at most one."""
    bounds = [round(i * len(rows) / parts) for i in range(parts + 1)]
    return [rows[a:b] for a, b in itertools.pairwise(bounds)]


class TrainExamples:
    """The train loader: one epoch's batches, resumable at any of them.

    Args:
        batch_size: examples a backward pass, over all processes.
        accumulate: backward passes an optimizer step.
        seed: of their order.

    Raises:
        ValueError: the processes cannot share a batch, or there are too few examples for one step.
    """

    def __init__(
        self,
        dataset: ExampleDataset[Any],
        trainer: L.Trainer,
        batch_size: int,
        accumulate: int,
        seed: int,
    ) -> None:
        if batch_size % trainer.world_size:
            raise ValueError(
                f"algo.batch_size={batch_size} must be divisible by the {trainer.world_size}"
                " processes: it counts the examples of all of them together"
            )
        _require_others(dataset, batch_size, trainer.world_size, "algo.batch_size")
        self.dataset, self.trainer, self.seed = dataset, trainer, seed
        self.batch_size, self.accumulate = batch_size, accumulate
        self.lengths = [dataset.num_tokens(i) for i in range(len(dataset))]
        self.position = 0
        self._resumed: int | None = None  # the epoch that a checkpoint stands in
        self._length = len(self._steps(0)) * accumulate

    def __len__(self) -> int:
        return self._length

    def _steps(self, epoch: int) -> list[list[list[int]]]:
        return optimizer_steps(
            self.lengths,
            self.batch_size,
            self.accumulate,
            derive_seed(self.seed, epoch),
            self.trainer.world_size,
            self.dataset.smallest_batch,
        )

    def __iter__(self) -> Iterator[ExampleBatch[Any]]:
        if self._resumed != self.trainer.current_epoch:
            self.position = 0
        self._resumed = None
        steps = self._steps(self.trainer.current_epoch)
        batches = [(batch, step) for step in steps for batch in step]
        share = self.accumulate * self.trainer.world_size
        epoch, rank = self.trainer.current_epoch, self.trainer.global_rank
        for batch, step in batches[self.position :]:
            # Dropout draws from these: a resumed run goes on with the same masks.
            seed_all(derive_seed(self.seed, epoch, self.position, rank))
            self.position += 1
            counts = self.dataset.totals([row for part in step for row in part])
            totals = {name: count / share for name, count in counts.items()}
            yield self.dataset.batch(batch, totals, "train", share_of(self.trainer))

    def state_dict(self) -> dict[str, Any]:
        """Where an epoch goes on."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self._resumed = state["position"], self.trainer.current_epoch


class HeldOutExamples:
    """The validation loader: all examples, short ones first, each process its share.

    Args:
        batch_size: examples at once, over all processes.
    """

    def __init__(self, dataset: ExampleDataset[Any], trainer: L.Trainer, batch_size: int) -> None:
        _require_others(dataset, batch_size, trainer.world_size, "data.eval_batch_size")
        _require_others(dataset, len(dataset), trainer.world_size, "data.eval_size")
        self.dataset, self.trainer, self.batch_size = dataset, trainer, batch_size
        self.order = sorted(range(len(dataset)), key=dataset.num_tokens)
        self.totals = dataset.totals(self.order)  # so that batches' losses add up to that of all

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[ExampleBatch[Any]]:
        for rows in self._batches():
            yield self.dataset.batch(rows, self.totals, "val", share_of(self.trainer))

    def _batches(self) -> list[list[int]]:
        starts = range(0, len(self.order), self.batch_size)
        batches = [self.order[start : start + self.batch_size] for start in starts]
        least = self.trainer.world_size * self.dataset.smallest_batch
        if self.dataset.smallest_batch > 1 and len(batches) > 1 and len(batches[-1]) < least:
            batches[-2:] = [batches[-2] + batches[-1]]
        return batches


def _require_others(dataset: ExampleDataset[Any], count: int, world: int, option: str) -> None:
    """
    Raises:
        ValueError: a process would have fewer rows of a batch than it needs.
    """
    least = dataset.smallest_batch * world
    if dataset.smallest_batch > 1 and count < least:
        raise ValueError(
            f"{option}={count} must be {least} or more: each process compares"
            f" {dataset.smallest_batch} rows of a batch at least"
        )


def share_of(trainer: L.Trainer) -> slice:
    """Which rows of a batch are this process's: they take turns."""
    return slice(trainer.global_rank, None, trainer.world_size)
