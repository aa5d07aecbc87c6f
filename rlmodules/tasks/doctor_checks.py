"""What the doctor looks at: one function a check, each with a figure and a limit.

All numbers are differences that ought to be rounding: of log-probabilities in nats a token, of a
reward model's scores, of gradients relative to their norm.

Shapes: T tokens of a text, A tokens of a response.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.experience import TokenBatch
from datamodules.types import Trajectory, sequence_of
from rlmodules.algorithms.evaluation import evaluate
from rlmodules.functional import kl_estimate
from rlmodules.models import Teacher
from rlmodules.models.modes import evaluating
from rlmodules.reward_models.scalar import RewardModel

# Of bfloat16 twice, and of gradients three times the largest that benchmarks/doctor.py measured on
# healthy models (tiny and SmolLM2 under ppo, grpo, dpo, reward and sft): 0.30 nats of padding and
# 0.032 of gradients, both under dpo in bf16-true; in bf16-mixed 0.24 and 0.021.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.6, torch.float16: 0.05}
"""Of one number that goes through a model in a type: the largest difference that is no fault."""
GRADIENTS = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""The same of gradients, relative to their norm."""
MOVED = 0.01
"""Share of the trained weights that a step moves at least."""
Groups = Sequence[Sequence[Tensor]]
Said = Callable[[], list[Tensor]]
"""What ``outputs`` has for these texts; computed once, for several checks compare with it."""


@dataclass(frozen=True)
class Check:
    """What one look came to.

    Attributes:
        name: ``padding``.
        status: ``green``, ``red``, or ``skipped`` where there is nothing to look at.
        said: what was found, with the figure.
        remedy: what to do if it is red.
        figure: the number that decides; None where there is none.
        limit: what it may be at most, or at least.
        seconds: that it took.
    """

    name: str
    status: str
    said: str
    remedy: str = ""
    figure: float | None = None
    limit: float | None = None
    seconds: float | None = None


def below(name: str, figure: float, limit: float, said: str, remedy: str) -> Check:
    """Green where ``figure`` is a number up to ``limit``."""
    status = "green" if figure <= limit else "red"
    return Check(name, status, f"{said}: {figure:.2g}", remedy, figure, limit)


def skipped(name: str, why: str) -> Check:
    return Check(name, "skipped", why)


def tried(name: str, look: Callable[[], Check]) -> Check:
    """What ``look`` finds, or the error that it ends with."""
    try:
        return look()
    except Exception as error:
        return failed(name, error)


def failed(name: str, error: Exception) -> Check:
    said = f"{type(error).__name__}: {error}"
    return Check(name, "red", said, "It could not be tried: mend this first.")


# ------------------------------------------------------------------------ what a text is


def outputs(module: Any, groups: Groups) -> list[Tensor]:
    """What a model says of each text: log-probabilities of its tokens; of a reward model its scores
    and what they are made of, for a new head scores all texts 0."""
    with evaluating(module), module.inference():
        if isinstance(module, RewardModel):
            pooled = module.pooled(module.lay_out_texts(groups))
            return list(torch.cat([module.scores(pooled), pooled], dim=1).float().cpu())
        texts = [text for group in groups for text in group]
        places = [torch.arange(1, len(text)) for text in texts]
        tokens = TokenBatch.collate(texts, places, group_sizes=tuple(map(len, groups)))
        found = module.policy.score(tokens.to(module.policy.device)).logprobs.float().cpu()
        return list(found.split([len(at) for at in places]))


def apart(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest difference; infinite where something is no number."""
    gaps = [(a - b).abs().max().item() for a, b in zip(left, right, strict=True) if len(a)]
    return max((math.inf if math.isnan(gap) else gap for gap in gaps), default=0.0)


@contextlib.contextmanager
def padded(module: Any) -> Iterator[None]:
    """Rows are padded within, never packed."""
    owner = getattr(module, "policy", module)
    before, owner.can_pack = owner.can_pack, False
    try:
        yield
    finally:
        owner.can_pack = before


# ------------------------------------------------------------------------- the checks


def padding(module: Any, groups: Groups, limit: float) -> Check:
    """A text says the same alone as beside longer ones."""
    texts = [[text] for group in groups for text in group]
    with padded(module):
        alone = [outputs(module, [text])[0] for text in texts]
        figure = apart(alone, outputs(module, texts))
    return below(
        "padding", figure, limit, "texts alone and beside longer ones differ by",
        "The model looks at padding: it ignores its attention mask or its position_ids. Try"
        " model.attn_implementation=eager, or algo.batch_size=1 with more"
        " algo.gradient_accumulation_steps.",
    )  # fmt: skip


def packing(module: Any, groups: Groups, said: Said, limit: float) -> Check:
    """What texts begin with alike may be computed once."""
    if not getattr(module, "policy", module).packs:
        return skipped("packing", "rows are padded: nothing is packed here")
    with padded(module):
        figure = apart(said(), outputs(module, groups))
    return below(
        "packing", figure, limit, "packed and padded rows differ by",
        "Packed rows are not computed rightly: set model.attn_implementation=sdpa (or eager),"
        " which pads them, and report it.",
    )  # fmt: skip


def batch_order(module: Any, groups: Groups, said: Said, limit: float) -> Check:
    """A text says the same wherever in its batch it stands."""
    turned = outputs(module, groups[::-1])
    sizes = [len(group) for group in groups[::-1]]
    parts = [turned[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))][::-1]
    figure = apart(said(), [one for part in parts for one in part])
    return below(
        "batch order", figure, limit, "texts in another order differ by",
        "Texts of a batch change each other (batch statistics, experts with a capacity): train"
        " with algo.batch_size=1, or another model.",
    )  # fmt: skip


def gradient(module: Any, losses: Sequence[Callable[[], Tensor | None]]) -> Tensor:
    """The gradient of all that is trained, of the sum of ``losses``, on the CPU."""
    module.zero_grad(set_to_none=True)
    for loss in losses:
        with module.inference():
            value = loss()
        if value is not None:
            value.backward()
    weights = [p for p in module.parameters() if p.requires_grad]
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    module.zero_grad(set_to_none=True)
    return torch.cat([x.detach().float().flatten().cpu() for x in found])


def accumulation(
    module: Any,
    whole: Callable[[], Tensor | None],
    parts: Sequence[Callable[[], Tensor | None]],
    limit: float,
) -> Check:
    """A step in several backward passes is the step in one."""
    module.eval()  # without dropout, of which no two passes have the same
    together, apart_ = gradient(module, [whole]), gradient(module, parts)
    norm = together.norm().item()
    if norm == 0:
        return skipped("accumulation", "nothing is learned of these: their gradient is 0")
    figure = (together - apart_).norm().item() / norm
    return below(
        "accumulation", figure, limit, "gradients of one pass and of several differ by",
        "The loss is no sum over examples: a part of it is of the whole batch. Set"
        " algo.gradient_accumulation_steps=1.",
    )  # fmt: skip


def sampler(module: Any, trajectories: Sequence[Trajectory], limit: float) -> Check:
    """The sampler says of its tokens what training says of them."""
    pairs = [(sequence_of(t), torch.cat(t.logprobs)) for t in trajectories if t.actions]
    said = [logprobs.float() for _, logprobs in pairs]
    if not said:
        return skipped("sampler", "nothing is sampled to be learned from")
    with module.inference():
        known = evaluate(module.policy, None, trajectories, temperature=module.sampling.temperature)
    if any(mass < 0 for t in trajectories for mass in t.kept_mass or ()):
        return skipped("sampler", "the engine says probabilities of what top_p and top_k left")
    rows = [row[mask] for row, mask in zip(known.logprobs, known.mask, strict=True)]
    return below(
        "sampler", apart(said, rows), limit, "sampler and trainer differ in log-probability by",
        "What samples is another model than what is trained: dropout or experts that are drawn"
        " while sampling, another precision or engine. Look at sampler=, model.dtype and"
        " trainer.precision.",
    )  # fmt: skip


def reference(module: Any, groups: Groups, said: Said, limit: float) -> Check:
    """Before the first step the reference is the policy."""
    held = getattr(module, "reference", None)
    if held is None:
        return skipped("reference", "this algorithm has none")
    if isinstance(held, Teacher):
        return skipped("reference", "a teacher is in its place, which is another model")
    mine = said()
    with held.of(module.policy) as other, evaluating(other), module.inference():
        texts = [text for group in groups for text in group]
        places = [torch.arange(1, len(text)) for text in texts]
        tokens = TokenBatch.collate(texts, places, group_sizes=tuple(map(len, groups)))
        found = other.score(tokens.to(other.device)).logprobs.float().cpu()
    theirs = list(found.split([len(at) for at in places]))
    divergence = kl_estimate(torch.cat(mine), torch.cat(theirs), "k3").mean().item()
    told = f"reference and policy differ (KL {divergence:.1g}) in log-probability by"
    return below(
        "reference", apart(mine, theirs), limit, told,
        "The KL would not begin at 0: the policy was changed after its reference was made, or the"
        " two compute differently (compile, dropout). Start from the exported model.",
    )  # fmt: skip


def movement(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], steps: int, excuse: str = ""
) -> Check:
    """Steps move the weights that are trained.

    Args:
        before, after: trained weights by name.
        excuse: why these steps may have had nothing to learn from.
    """
    moved = sum(int((weight != after[name]).sum()) for name, weight in before.items())
    count = sum(weight.numel() for weight in before.values())
    still = sum(torch.equal(weight, after[name]) for name, weight in before.items())
    share = moved / max(count, 1)
    if share < MOVED and excuse:
        return skipped("steps", excuse)
    said = f"{steps} steps moved {share:.1%} of {count} trained weights"
    said += f"; {still} of {len(before)} tensors stood still" if still else ""
    remedy = (
        "Most weights round to what they were, or get no gradient: keep them in float32"
        " (model.dtype=auto), raise algo.learning_rate, or see what is frozen."
    )
    status = "green" if share >= MOVED else "red"
    return Check("steps", status, said, remedy, share, MOVED)


def resumption(
    mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], steps: tuple[int, int]
) -> Check:
    """Three steps at once are one and then two more, bit by bit.

    Args:
        mine, theirs: weights after each, by name.
        steps: how many each took.
    """
    unlike = [name for name, w in mine.items() if not torch.equal(w, theirs[name])]
    gaps = [(mine[name].double() - theirs[name].double()).abs().max() for name in unlike]
    largest = float(max(gaps, default=0.0))
    status = "red" if unlike or steps[0] != steps[1] else "green"
    said = f"{len(unlike)} of {len(mine)} tensors differ after {steps[0]} steps, by {largest:.2g}"
    remedy = (
        "A run that goes on from ckpt_path is another one: something draws random numbers or keeps"
        " a state that no checkpoint holds (a reward or environment of your own?)."
    )
    return Check("resume", status, said, remedy, largest, 0.0)


def exported(module: Any, folder: Path, groups: Groups, said: Said, limit: float) -> Check:
    """What is written and loaded again says the same."""
    module.export(folder)
    written = module.from_export(folder).to(module.device)
    written.trainer = module.trainer
    figure = apart(said(), outputs(written, groups))
    return below(
        "export", figure, limit, "the exported folder, loaded again, differs by",
        "The folder is not what was trained: weights that are tied on paper and not in fact, or"
        " that save_pretrained leaves out. Say export.merge and export.dtype, or report it.",
    )  # fmt: skip
