"""Tokens that are computed, packed and padded, and the rows that predict, counted by hand."""

import torch

from datamodules.examples.streams import optimizer_steps
from datamodules.experience import TokenBatch
from datamodules.seeding import derive_seed
from rlmodules.memory.longest import Episodes, Examples
from rlmodules.memory.texts import Group, laid_out, size, width
from rlmodules.models import PolicyModel
from rlmodules.models.embedded import tiny_model

PAIR = Group.of_prompt(4, [3, 5])


def test_a_packed_pair_holds_its_prompt_once():
    assert size([PAIR], packs=True) == 4 + 3 + 5
    assert size([PAIR], packs=False) == 2 * 9
    assert width([PAIR, Group.of_prompt(4, [6])]) == 10


def test_made_up_texts_are_alike_exactly_as_far_as_they_are_to_be():
    first, second = PAIR.texts()
    assert first[:4].tolist() == second[:4].tolist() and first[4] != second[4]


def test_rows_are_laid_out_as_the_policy_lays_them_out():
    groups = [PAIR, Group.of_prompt(2, [4, 1])]
    policy = PolicyModel(tiny_model()[0])
    texts = [text for group in groups for text in group.texts()]
    starts = [start for group in groups for start in group.starts]
    positions = [torch.arange(a, len(t)) for a, t in zip(starts, texts, strict=True)]
    tokens = TokenBatch.collate(texts, positions, group_sizes=(2, 2))
    for packs in (False, True):
        policy.can_pack = packs
        layout, before = policy._lay_out(tokens, whole=False)
        ours, at, every = laid_out(groups, packs=packs, scored=True)
        assert ours.input_ids.shape == layout.input_ids.shape
        assert every.tolist() == before.tolist()
        pairs = torch.unique(torch.stack([before, tokens.actions]), dim=1)
        assert len(at) == (pairs.shape[1] if packs else len(before))


def test_the_heaviest_batch_is_one_of_the_run_and_none_is_heavier():
    lengths = [7, 30, 8, 9, 31, 10, 6, 29, 11, 12, 5, 28]
    groups = [Group.of_prompt(2, [n - 2]) for n in lengths]
    examples = Examples(groups, accumulate=2, seed=3, epochs=2, held_out=groups[:5],
                        eval_batch_size=2, exact=True)  # fmt: skip
    batches = [
        batch
        for epoch in range(2)
        for step in optimizer_steps(lengths, 3, 2, derive_seed(3, epoch))
        for batch in step
    ]
    found = examples.heaviest(3, 1, packs=False)
    assert found in batches
    padded = [len(rows) * max(lengths[row] for row in rows) for rows in batches]
    assert len(found) * max(lengths[row] for row in found) == max(padded)
    assert [g.lengths for g in examples.evaluated(1, packs=True)] == [(9,), (30,)]


def test_a_minibatch_of_episodes_has_the_longest_prompts_in_whole_groups():
    episodes = Episodes([9, 7, 7], new=5, held_out=[4], generations=(2, 3), eval_batch_size=96)
    assert [(g.shared, g.lengths) for g in episodes.minibatch(3)] == [(9, (14, 14)), (7, (12,))]
    assert episodes.sampled(4, held_out=False) == ([9, 7], 4)
    assert episodes.sampled(96, held_out=True) == ([4], 3)
