"""The longest batches of a run: of the data as they are, or of what the limits allow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.examples.dataset import Example, ExampleDataset
from datamodules.examples.streams import optimizer_steps
from datamodules.seeding import derive_seed
from rlmodules.algorithms.evaluation import EVALUATION_TOKENS
from rlmodules.memory.texts import Group, size
from rlmodules.models.layout import shared_prefix

MOST = 65536
"""Rows beyond which no batch is looked for."""
EPOCHS = 8
"""Epochs of which every batch is looked at; the order of later ones is as random."""


@dataclass(frozen=True)
class Episodes:
    """The lengths of what an online algorithm reads and writes.

    Attributes:
        prompts: tokens of each starting state's prompt, the longest first.
        new: tokens of the longest response.
        held_out: the same of held-out starting states.
        generations: episodes of each prompt in an iteration, and of held-out ones.
        eval_batch_size: held-out episodes that are played at once, over all processes.
        context: tokens that an episode of several turns may have; None where one is a response.
    """

    prompts: Sequence[int]
    new: int
    held_out: Sequence[int]
    generations: tuple[int, int]
    eval_batch_size: int
    context: int | None = None

    def minibatch(self, rows: int) -> list[Group]:
        """The longest ``rows`` episodes, each written to its end."""
        return self._groups(self.prompts, rows, self.generations[0])

    def evaluated(self, rows: int, packs: bool, *, held_out: bool = False) -> list[Group]:
        """The longest episodes that are scored together: whole groups or padded rows."""
        prompts, repeats = self.prompts, self.generations[0]
        if held_out:
            prompts, repeats = self.held_out, self.generations[1]
            rows = min(rows, len(prompts) * repeats)
        episodes = self._groups(prompts, rows, repeats)
        texts = [(g.shared, n) for g in episodes for n in g.lengths]
        longest = max(n for _, n in texts)
        chosen, tokens = 0, 0
        for _, n in texts:
            tokens = tokens + n if packs else (chosen + 1) * longest
            if chosen and tokens > EVALUATION_TOKENS:
                break
            chosen += 1
        return self._groups(prompts, chosen, repeats)

    def _groups(self, prompts: Sequence[int], rows: int, size: int) -> list[Group]:
        groups = []
        while rows > 0:
            prompt = prompts[len(groups) % len(prompts)]
            here = min(rows, size)
            new = self.new if self.context is None else max(self.context - prompt, self.new)
            groups.append(Group.of_prompt(prompt, [new] * here))
            rows -= here
        return groups

    def sampled(self, rows: int, *, held_out: bool) -> tuple[list[int], int]:
        """Lengths of the different prompts that ``rows`` episodes are of, and how many rows."""
        prompts = self.held_out if held_out else self.prompts
        repeats = self.generations[1 if held_out else 0]
        count = max(min(-(-rows // repeats), len(prompts)), 1)
        longest = list(prompts[:count])
        if self.context is not None:
            longest = [max(n, self.context - self.new) for n in longest]
        rows = min(rows, len(prompts) * repeats) if held_out else rows
        return longest, rows


@dataclass(frozen=True)
class Examples:
    """Examples of a data set, or made up of the limits alone.

    Attributes:
        groups: one an example.
        accumulate, seed, epochs: how the examples are batched.
        held_out: one a held-out example.
        eval_batch_size: held-out examples that are evaluated at once, over all processes.
        exact: whether these are the data, so that the batches are those of the run.
        smallest: rows that a process has of a batch, at least.
    """

    groups: Sequence[Group]
    accumulate: int
    seed: int
    epochs: int
    held_out: Sequence[Group]
    eval_batch_size: int
    exact: bool
    smallest: int = 1

    def batch(self, rows: int, world: int, packs: bool) -> list[Group]:
        """The heaviest batch of ``rows`` examples, one process's share of it."""
        if not self.exact:
            return [self.groups[0]] * max(rows // world, 1)
        return [self.groups[row] for row in self.heaviest(rows, world, packs)]

    def heaviest(self, rows: int, world: int, packs: bool) -> list[int]:
        """Row numbers of that batch."""
        lengths = [sum(group.lengths) for group in self.groups]
        shares = (
            batch[rank::world]
            for epoch in range(min(self.epochs, EPOCHS))
            for step in optimizer_steps(
                lengths,
                rows,
                self.accumulate,
                derive_seed(self.seed, epoch),
                world,
                self.smallest,
            )
            for batch in step
            for rank in range(world)
        )
        return max(
            filter(None, shares), key=lambda rows: size([self.groups[row] for row in rows], packs)
        )

    def batches(self, rows: int) -> int:
        """Of an epoch; of data that are not known so many that every kernel that is kept counts."""
        return -(-len(self.groups) // rows) if self.exact else MOST

    def most(self, world: int) -> int:
        """Examples that a batch can have."""
        return len(self.groups) // self.accumulate // world * world if self.exact else MOST

    def evaluated(self, world: int, packs: bool) -> list[Group]:
        """The heaviest of the held-out batches, which go by length; empty where there is none."""
        rows = self.eval_batch_size
        ordered = sorted(self.held_out, key=lambda group: sum(group.lengths))
        batches = [ordered[i : i + rows][::world] for i in range(0, len(ordered), rows)]
        return max(batches, key=lambda groups: size(groups, packs), default=[])


def groups_of(dataset: ExampleDataset[Any] | None, *, reads_prompts: bool) -> list[Group]:
    """Lengths of each example.

    Args:
        reads_prompts: the loss is also of the chosen text's prompt.
    """
    return [_group(dataset[i], reads_prompts) for i in range(len(dataset or ()))]


def _group(example: Example, reads_prompts: bool) -> Group:
    lengths = tuple(len(sequence) for sequence in example.sequences)
    starts = example.starts
    starts = (1, *starts[1:]) if reads_prompts else starts
    return Group(shared_prefix(example.sequences), lengths, starts)


def of_limits(max_length: int, max_prompt_length: int, sides: int, *, reads_prompts: bool) -> Group:
    """An example as long as the limits allow."""
    prompt = min(max_prompt_length, max_length - 1)
    start = max(prompt, 1)
    starts = (1 if reads_prompts else start, *(start,) * (sides - 1))
    return Group(prompt, (max_length,) * sides, starts)


def longest_first(lengths: Iterable[int]) -> list[int]:
    return sorted(lengths, reverse=True)
