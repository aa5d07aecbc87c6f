"""Kernels of products in half precision: how many, by hand, and that a process keeps them."""

from functools import partial

import pytest
import torch
from pair_helpers import dataset

from rlmodules import DPO, DPOConfig
from rlmodules.memory import kernels
from rlmodules.memory.estimate import KERNELS, Estimate
from rlmodules.memory.kernels import Kernels, measured
from rlmodules.memory.longest import Examples, groups_of
from rlmodules.memory.passes import update
from rlmodules.memory.run import Run
from rlmodules.models import TINY, ModelConfig

TWO = torch.Size([5, 64]), torch.Size([64, 32])
THREE, ONE = ((torch.Size([3, n, 4]), torch.Size([3, 4, 9])) for n in (5, 1))


def test_shapes_are_counted_by_batches_and_those_of_the_attention_of_one_by_tokens_too():
    found = Kernels()
    found.add({TWO, THREE}, batches=4)
    found.add({TWO, THREE, ONE}, batches=2, tokens=10)
    assert found.counts == {2: 6, 3: 4 + 2 + 20}
    assert found.bytes({2: 100.0, 3: 10.0}) == 6 * 100 + 26 * 10


def test_no_more_are_kept_than_the_library_keeps(monkeypatch):
    monkeypatch.setattr(kernels, "KEPT", 10)
    found = Kernels()
    found.add({TWO}, batches=30)
    found.add({THREE}, batches=10)
    assert found.bytes({2: 100.0, 3: 10.0}) == 10 * (0.75 * 100 + 0.25 * 10)
    assert Kernels().bytes({2: 1.0, 3: 1.0}) == 0


@pytest.mark.parametrize(("precision", "half"), [("32-true", 0), ("bf16-mixed", 1)])
def test_the_products_of_a_pass_are_those_of_its_layers(precision, half):
    """Each of the shapes forward, and for the gradients of its states and of its weight."""
    config = DPOConfig(model_name=TINY)
    parts = Run(DPO, config, ModelConfig(name=TINY), precision, "cpu", 1).parts()
    groups = groups_of(dataset(), reads_prompts=False)
    update(parts, groups, compared=groups)
    flat = {shapes for shapes in parts.products if len(shapes[-1]) == 2}
    # q and o, k and v, gate and up, down: as many forward; of states gate's is down's forward, and
    # q's is q's; of weights; and the head's three
    tokens = {shapes[0][0] for shapes in flat if shapes[1] == (64, 32)}
    assert len(tokens) == half
    assert sum(shapes[0][0] in tokens for shapes in flat) == half * 5
    assert sum(shapes[0][1] in tokens for shapes in flat) == half * 4


def test_they_are_part_of_every_moment_and_of_what_fits():
    config = DPOConfig(model_name=TINY, batch_size=4, gradient_accumulation_steps=1)
    run = Run(DPO, config, ModelConfig(name=TINY), "bf16-mixed", "cpu", 1)
    groups = groups_of(dataset(), reads_prompts=False)
    texts = Examples(groups, 1, 0, 1, [], 1, exact=True)
    make = partial(Estimate, run, texts, base=0)
    plain, found = make(), make(kernel={2: 1000.0, 3: 0.0})
    batches = -(-len(groups) // 4)
    kept = {m.parts[KERNELS] for m in found.moments}
    assert kept == {1000 * sum(len(s[-1]) == 2 for s in plain_products(run, texts)) * batches}
    (size,) = kept
    assert found.peak.total == plain.peak.total + size
    assert found.update(4).total == plain.update(4).total + size
    assert all(KERNELS not in moment.parts for moment in plain.moments)


def plain_products(run, texts):
    parts = run.parts()
    groups = texts.batch(4, 1, parts.packs)
    update(parts, groups, compared=groups)
    return parts.products


def test_a_process_keeps_them_where_products_in_half_precision_have_any():
    found = measured(torch.bfloat16)
    assert found.keys() == {2, 3} and all(0 <= size < 5 * 2**20 for size in found.values())
