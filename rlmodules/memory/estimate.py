"""What a run takes at each of its moments, and the largest batch that fits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from rlmodules.memory.depth import Deep
from rlmodules.memory.kernels import Kernels
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
from rlmodules.memory.passes import (
    Peaks,
    distill,
    evaluate,
    judge,
    sample,
    update,
    update_rewards,
)
from rlmodules.memory.run import Run, stepping_bytes
from rlmodules.memory.texts import Group, size, width

BUCKETS = "gradients in transit"
"""Of DDP: a copy of all gradients, which processes add up."""
BESIDE = "reward model"
KERNELS = "kernels"
"""Of products in half precision, on a CPU."""


@dataclass
class Estimate:
    """The moments of a run on one of its devices.

    Attributes:
        run: what is run.
        texts: what it reads and writes.
        base: bytes of the process itself.
        beside: bytes of models that score, on the same device.
        file_bytes: of the weights' files, which are in memory while they are read; 0 on a GPU.
        teacher_file_bytes: the same of the teacher's.
        kernel: bytes of a kernel that is kept for a shape of products, by their dimensions; nothing
            where none are.
    """

    run: Run
    texts: Episodes | Examples
    base: int
    beside: int = 0
    file_bytes: int = 0
    teacher_file_bytes: int = 0
    kernel: Mapping[int, float] = field(default_factory=lambda: {2: 0.0, 3: 0.0})
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self.parts = self.run.parts()
        self._deep = Deep(self.parts)
        self._updates: dict[int, Moment] = {}
        self._kernels = Kernels()

    @property
    def rows(self) -> int:
        """Of a backward pass, as the run has it."""
        return int(getattr(self.run.config, self.run.batch_option))

    @cached_property
    def moments(self) -> list[Moment]:
        """In their order."""
        return [self._with_kernels(moment) for moment in self._made]

    @cached_property
    def _made(self) -> list[Moment]:
        """The moments without kernels, of which each counts some."""
        return [*self._loading(), *self._passes(), self._stepping()]

    @property
    def peak(self) -> Moment:
        return peak_of(self.moments)

    def update(self, rows: int) -> Moment:
        """A backward pass of the longest batch of ``rows`` episodes or examples."""
        return self._with_kernels(self._update(rows))

    def _with_kernels(self, moment: Moment) -> Moment:
        kept = self._kernels.bytes(self.kernel) if self._made else 0
        return replace(moment, parts={**moment.parts, KERNELS: kept}) if kept else moment

    def _peak(
        self,
        passed: Callable[[Parts], Peaks],
        batches: int,
        tokens: int = 1,
        deep: Deep | None = None,
    ) -> Any:
        """Of a pass, of whose products kernels are kept.

        Args:
            deep: of other parts than the run's.
        """
        deep = deep or self._deep
        deep.parts.products.clear()
        found = deep.peak(passed)
        self._kernels.add(deep.parts.products, batches, tokens)
        return found

    def _update(self, rows: int) -> Moment:
        if rows not in self._updates:
            groups, run = self.groups(rows), self.run
            if run.has_teacher:
                c = run.config
                passed = partial(distill, groups=groups, beta=c.beta, temperature=c.temperature)
            elif run.scores_tokens:
                kinds = {"entropy": run.has_entropy, "entropy_grad": run.trains_entropy}
                kinds["values"] = run.has_critic
                passed = partial(update, groups=groups, compared=run.compared(groups), **kinds)
            else:
                passed = partial(update_rewards, groups=groups, with_mask=self._masks)
            found = self._peak(passed, self._batches if rows == self.rows else 0)
            self._updates[rows] = self._moment("update", found, groups)
        return self._updates[rows]

    @property
    def _batches(self) -> int:
        """That the run trains on, each of another size, at most."""
        c = self.run.config
        if isinstance(self.texts, Examples):
            return self.texts.batches(c.batch_size) * c.num_epochs
        epochs = getattr(c, "ppo_epochs", None) or c.num_epochs
        return c.num_iterations * epochs * c.batch_size // c.mini_batch_size

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
            return [self._update(self.rows), *self._judged(texts)]
        policys, teachers = run.written(max(run.config.batch_size // run.world, 1))
        made = [self._rollout(texts, "rollout", policys)] if policys else []
        if teachers:
            made.append(self._rollout(texts, "rollout by the teacher", teachers))
        if texts.eval_batch_size and texts.held_out:
            rows = max(texts.eval_batch_size // run.world, 1)
            made.append(self._rollout(texts, "held-out rollout", rows))
        return [*made, *self._evaluation(texts), self._update(self.rows)]

    def _rollout(self, texts: Episodes, name: str, rows: int) -> Moment:
        """Writing the longest responses, ``rows`` together."""
        held_out, teachers = name.startswith("held-out"), name.endswith("teacher")
        prompts, count = texts.sampled(rows, held_out=held_out)
        written = partial(sample, prompts=prompts, rows=count, new=texts.new)
        times = 1 if held_out else self.run.config.num_iterations
        deep = Deep(self.parts.of_teacher()) if teachers else None
        found = self._peak(written, times, texts.new, deep)
        if teachers:
            found |= {REFERENCE: found[WEIGHTS], WEIGHTS: self.parts.weight_bytes,
                      OPTIMIZER: self.parts.optimizer_bytes}  # fmt: skip
        return self._of(name, found, f"{count} x ({max(prompts)} + {texts.new})")

    def _evaluation(self, texts: Episodes) -> list[Moment]:
        """Of what an iteration wrote, if it is scored; where there is a teacher, of what is held
        out."""
        run, held_out = self.run, self.run.has_teacher
        if not (texts.held_out if held_out else run.recompute or run.has_reference):
            return []
        rows = texts.eval_batch_size if held_out else run.config.batch_size
        here = max(rows // run.world, 1)
        scored = texts.evaluated(here, self.parts.packs, held_out=held_out)
        passed = partial(evaluate, groups=scored, policy=run.recompute)
        together = sum(len(group.lengths) for group in scored) * run.world
        times = -(-rows // together) * (1 if held_out else run.config.num_iterations)
        return [self._moment("evaluation", self._peak(passed, times), scored)]

    def _judged(self, texts: Examples) -> list[Moment]:
        groups = texts.evaluated(self.run.world, self.parts.packs)
        if not groups:
            return []
        if self.run.scores_tokens:
            passed = partial(evaluate, groups=groups)
        else:
            passed = partial(judge, groups=groups, with_mask=self._masks)
        found = self._peak(passed, -(-len(texts.held_out) // texts.eval_batch_size))
        return [self._moment("held-out batch", found, groups)]

    def _loading(self) -> list[Moment]:
        parts = {**self._around(), WEIGHTS: self.parts.weight_bytes}
        made = {"loading": {"file": self.file_bytes}}
        if self.run.has_teacher:
            teachers = {REFERENCE: self.parts.reference_bytes, "file": self.teacher_file_bytes}
            made["loading of the teacher"] = teachers
        return [
            Moment(name, {k: v for k, v in (parts | more).items() if v})
            for name, more in made.items()
        ]

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
