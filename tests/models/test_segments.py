"""Attention of packed rows equals dense attention under the mask that segments mean."""

import random

import pytest
import torch
from torch.testing import assert_close

from rlmodules.models import attention, segments
from rlmodules.models.attention import segment_attention
from rlmodules.models.segments import decoded, encoded, plan

ROWS = {
    "one": ((5, 0),),
    "a pair": ((3, 4, 2),),
    "no prefix": ((0, 4, 2, 7),),
    "an empty rest": ((4, 0, 3), (2, 5, 0, 1)),
    "unequal": ((2, 1, 40, 3), (30, 2, 2), (0, 1), (1, 1, 1, 1, 1, 1)),
    "alike": tuple((6, 9, 8) for _ in range(8)),
}


def sights(row, window):
    """[N, N], which token sees which, by the definition alone."""
    owner, position = [], []  # of each token: its group and rest (None: the prefix), its position
    for group, (prefix, *rests) in enumerate(row):
        owner += [(group, None)] * prefix
        position += range(prefix)
        for number, rest in enumerate(rests):
            owner += [(group, number)] * rest
            position += range(prefix, prefix + rest)
    count = len(owner)
    seen = torch.zeros(count, count, dtype=torch.bool)
    for i in range(count):
        for j in range(count):
            together = owner[j][0] == owner[i][0] and owner[j][1] in (None, owner[i][1])
            distance = position[i] - position[j]
            seen[i, j] = together and distance >= 0 and (window is None or distance < window)
    return seen


def inputs(row, heads=4, kv_heads=2, size=8):
    count = sum(map(sum, row))
    made = torch.Generator().manual_seed(count)
    shapes = ((heads, count, size), (kv_heads, count, size), (kv_heads, count, size))
    return [torch.randn(1, *s, generator=made).requires_grad_() for s in shapes]


def dense(q, k, v, row, *, scaling, softcap=None, sliding_window=None):
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(~sights(row, sliding_window), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def none_unpacked(*args, **options):
    raise AssertionError("a packed row was taken for another")


@pytest.mark.parametrize("most", [1, 300, 2**18])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"sliding_window": 4}], ids=str)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_packed_attention_is_dense_attention_and_so_are_its_gradients(
    row, options, most, monkeypatch
):
    monkeypatch.setattr(segments, "MOST_SCORES", most)
    plan.cache_clear()
    options = options | {"scaling": 0.3}
    ours, theirs = inputs(row), inputs(row)
    out, _ = segment_attention(
        None, *ours, None, unpacked=none_unpacked, segments=encoded(row), **options
    )
    wanted = dense(*theirs, row, **options)
    assert_close(out, wanted)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine.grad, other.grad)
    plan.cache_clear()


def test_every_token_asks_once_and_padding_is_bounded():
    numbers = random.Random(0)
    for _ in range(50):
        row = tuple(
            tuple(numbers.randrange(60) for _ in range(numbers.randrange(2, 6)))
            for _ in range(numbers.randrange(1, 9))
        )
        count, asked = sum(map(sum, row)), []
        for pieces in plan(row, None, torch.device("cpu")):
            asked += pieces.asking[pieces.real].tolist()
            pieces_count, width, length = pieces.sizes
            padded = pieces_count * width * length
            real = torch.zeros(pieces_count * width, dtype=torch.bool)
            real[pieces.real] = True
            seen = (pieces.hidden == 0).sum(-1).flatten()[real].sum()
            assert pieces_count == 1 or padded <= segments.MOST_SCORES
            assert seen <= padded
        assert sorted(asked) == list(range(count))


def test_segments_are_read_as_they_were_written():
    for row in ROWS.values():
        assert decoded(encoded(row)) == row


def test_the_operator_is_what_torch_expects_of_one():
    row = ROWS["unequal"]
    q, k, v = (x[0].transpose(0, 1).detach().requires_grad_() for x in inputs(row))
    torch.library.opcheck(attention._attend, (q, k, v, encoded(row), 0.3, None, None))
