"""Packed rows, and their attention by its definition alone."""

import torch
from torch.testing import assert_close

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


def inputs(row, heads=4, kv_heads=2, size=8, value_size=8):
    count = sum(map(sum, row))
    made = torch.Generator().manual_seed(count)
    shapes = ((heads, count, size), (kv_heads, count, size), (kv_heads, count, value_size))
    return [torch.randn(1, *s, generator=made).requires_grad_() for s in shapes]


def dense(q, k, v, row, *, scaling, softcap=None, sliding_window=None):
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * scaling
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill(~sights(row, sliding_window), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def check_same(ours, out, theirs, wanted):
    """Results, and the gradients of what they were computed from, are alike."""
    assert_close(out, wanted)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    (out * weights).sum().backward()
    (wanted * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine.grad, other.grad)
