"""What a run takes at each of its moments, and the largest batch that fits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from rlmodules.memory.depth import Deep
from rlmodules.memory.longest import MOST, Episodes, Examples
from rlmodules.memory.moments import BASE, Moment, largest_that_fits, peak_of
from rlmodules.memory.parts import (
    GRADIENTS,
    OPTIMIZER,
    REFERENCE,
    TEMPORARY,
    WEIGHTS,
    Parts,
    size_of,
)
from rlmodules.memory.passes import evaluate, judge, sample, update, update_rewards
from rlmodules.memory.run import Run, stepping_bytes
from rlmodules.memory.texts import Group, size, width

BUCKETS = "gradients in transit"
"""Of DDP: a copy of all gradients, which processes add up."""
BESIDE = "reward model"


@dataclass
class Estimate:
    """The moments of a run on one of its devices.

    Attributes:
        run: what is run.
        texts: what it reads and writes.
        base: bytes of the process itself.
        beside: bytes of models that score, on the same device.
        file_bytes: of the weights' files, which are in memory while they are read; 0 on a GPU.
    """

    run: Run
    texts: Episodes | Examples
    base: int
    beside: int = 0
    file_bytes: int = 0
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.run.parts()
        self._deep = Deep(self.parts)
        self._updates: dict[int, Moment] = {}

    @property
    def rows(self) -> int:
        """Of a backward pass, as the run has it."""
        return int(getattr(self.run.config, self.run.batch_option))

    @cached_property
    def moments(self) -> list[Moment]:
        """In their order."""
        return [self._loading(), *self._passes(), self._stepping()]

    @property
    def peak(self) -> Moment:
        return peak_of(self.moments)

    def update(self, rows: int) -> Moment:
        """A backward pass of the longest batch of ``rows`` episodes or examples."""
        if rows not in self._updates:
            groups, run = self.groups(rows), self.run
            if run.scores_tokens:
                kinds = {"entropy": run.has_entropy, "entropy_grad": run.trains_entropy}
                kinds["values"] = run.has_critic
                passed = partial(update, groups=groups, compares=run.compares, **kinds)
            else:
                passed = partial(update_rewards, groups=groups, with_mask=self._masks)
            found = self._deep.peak(passed)
            self._updates[rows] = self._moment("update", found, groups)
        return self._updates[rows]

    @property
    def _masks(self) -> bool:
        return not self.parts.paper.is_causal

    def groups(self, rows: int) -> list[Group]:
        """The longest batch of one device."""
        if isinstance(self.texts, Episodes):
            return self.texts.minibatch(max(rows // self.run.world, 1))
        return self.texts.batch(rows, self.run.world, self.parts.packs)

    def largest(self, room: int) -> int:
        """The largest batch of a backward pass that fits into ``room``; 0 where none does."""
        world = self.run.world
        if self._stepping().total > room:
            return 0
        most = MOST if isinstance(self.texts, Episodes) else self.texts.most(world)
        return largest_that_fits(
            lambda rows: self.update(rows).total,
            room,
            now=max(self.rows // world * world, world),
            unit=world,
            most=most,
        )

    def _passes(self) -> list[Moment]:
        run, texts = self.run, self.texts
        if isinstance(texts, Examples):
            return [self.update(self.rows), *self._judged(texts)]
        made = []
        for name, rows, held_out in (
            ("rollout", run.config.batch_size, False),
            ("held-out rollout", texts.eval_batch_size, True),
        ):
            if rows and (texts.held_out or not held_out):
                prompts, count = texts.sampled(max(rows // run.world, 1), held_out=held_out)
                written = partial(sample, prompts=prompts, rows=count, new=texts.new)
                found = self._deep.peak(written)
                said = f"{count} x ({max(prompts)} + {texts.new})"
                made.append(self._of(name, found, said))
        scored = texts.evaluated(max(run.config.batch_size // run.world, 1), self.parts.packs)
        if run.recompute or run.has_reference:
            passed = partial(evaluate, groups=scored, policy=run.recompute)
            found = self._deep.peak(passed)
            made.append(self._moment("evaluation", found, scored))
        return [*made, self.update(self.rows)]

    def _judged(self, texts: Examples) -> list[Moment]:
        groups = texts.evaluated(self.run.world, self.parts.packs)
        if not groups:
            return []
        if self.run.scores_tokens:
            found = self._deep.peak(partial(evaluate, groups=groups))
        else:
            found = self._deep.peak(partial(judge, groups=groups, with_mask=self._masks))
        return [self._moment("held-out batch", found, groups)]

    def _loading(self) -> Moment:
        parts = {WEIGHTS: self.parts.weight_bytes, "file": self.file_bytes}
        return Moment("loading", {k: v for k, v in (self._around() | parts).items() if v})

    def _stepping(self) -> Moment:
        trained = size_of(self.parts.trained)
        parts = {
            WEIGHTS: self.parts.weight_bytes,
            REFERENCE: self.parts.reference_bytes,
            GRADIENTS: trained,
            OPTIMIZER: self.parts.optimizer_bytes,
            TEMPORARY: stepping_bytes(self.parts, self.run.config.optimizer.name),
        }
        return self._of("optimizer step", parts, "")

    def _moment(self, name: str, found: dict[str, int], groups: Sequence[Group]) -> Moment:
        rows = sum(len(group.lengths) for group in groups)
        tokens = size(groups, self.parts.packs)
        return self._of(name, found, f"{rows} x {width(groups)} ({tokens})")

    def _of(self, name: str, found: dict[str, int], said: str) -> Moment:
        more = {BUCKETS: size_of(self.parts.trained) if self.run.world > 1 else 0}
        parts = self._around() | found | more
        return Moment(name, {part: size for part, size in parts.items() if size}, said)

    def _around(self) -> dict[str, int]:
        return {BASE: self.base, BESIDE: self.beside}
