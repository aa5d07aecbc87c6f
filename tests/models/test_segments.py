"""Attention of packed rows equals dense attention under the mask that segments mean."""

import random

import pytest
import torch
from segment_helpers import ROWS, check_same, dense, inputs
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlmodules.models import attention, segments
from rlmodules.models.attention import segment_attention
from rlmodules.models.segments import decoded, encoded, plan


def none_unpacked(*args, **options):
    raise AssertionError("a packed row was taken for another")


@pytest.fixture(autouse=True)
def planned_anew():
    """Plans are kept by their segments, not by the sizes that tests change."""
    plan.cache_clear()
    yield
    plan.cache_clear()


@pytest.mark.parametrize(
    ("most", "at_once"), [(1, 256), (300, 256), (2**18, 256), (300, 7), (1, 3)]
)
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"sliding_window": 4}], ids=str)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_packed_attention_is_dense_attention_and_so_are_its_gradients(
    row, options, most, at_once, monkeypatch
):
    compare(row, options, most, at_once, monkeypatch, 8)


@pytest.mark.parametrize("value_size", [4, 12])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_values_may_have_another_size_than_keys(row, value_size, monkeypatch):
    """Latent attention has such values: DeepSeek, GLM-4.7-Flash, Kimi, MiniCPM3."""
    compare(row, {}, 300, 256, monkeypatch, value_size)


def compare(row, options, most, at_once, monkeypatch, value_size):
    monkeypatch.setattr(segments, "MOST_SCORES", most)
    monkeypatch.setattr(segments, "ASKED_AT_ONCE", at_once)
    options = options | {"scaling": 0.3}
    ours, theirs = (inputs(row, value_size=value_size) for _ in range(2))
    out, _ = segment_attention(
        None, *ours, None, unpacked=none_unpacked, segments=encoded(row), **options
    )
    wanted = dense(*theirs, row, **options)
    check_same(ours, out, theirs, wanted)


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
            before = length - pieces.hidden.shape[-1]
            seen = (before + (pieces.hidden == 0).sum(-1)).flatten()[real].sum()
            assert pieces_count == 1 or padded <= segments.MOST_SCORES
            assert seen <= padded
        assert sorted(asked) == list(range(count))


def test_segments_are_read_as_they_were_written():
    for row in ROWS.values():
        assert decoded(encoded(row)) == row


@pytest.mark.parametrize("value_size", [8, 4])
def test_the_operator_is_what_torch_expects_of_one(value_size):
    row = ROWS["unequal"]
    made = inputs(row, value_size=value_size)
    q, k, v = (x[0].transpose(0, 1).detach().requires_grad_() for x in made)
    torch.library.opcheck(attention._attend, (q, k, v, encoded(row), 0.3, None, None))


def test_scores_of_a_long_text_never_exist_at_once():
    """8,192 tokens: a block asks at a time, in the forward pass and in the backward pass."""
    length, heads, size = 8192, 2, 4
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in tree_leaves(out) if torch.is_tensor(x))])
            return out

    q, k, v = (torch.randn(length, heads, size) for _ in range(3))
    shape = (encoded(((0, length),)), 0.3, None, None)
    with Watch():
        plan.cache_clear()
        plan(((0, length),), None, q.device)
        attention._attend._init_fn(q, k, v, *shape)
        attention._attend_backward._init_fn(q, q, k, v, *shape)
    assert largest <= heads * length * length // 16  # of 32 blocks, two would be too much


def test_what_many_pieces_say_of_a_token_adds_up_in_bfloat16():
    """A prefix's gradient over 300 rests is that in float32, rounded once."""
    row = ((1, *[1] * 300),)
    exact = [x[0].transpose(0, 1).detach() for x in inputs(row)]
    rounded = [x.bfloat16() for x in exact]
    exact = [x.float() for x in rounded]
    shape = (encoded(row), 0.3, None, None)
    wanted = attention._attend_backward(torch.ones_like(exact[0]), *exact, *shape)
    found = attention._attend_backward(torch.ones_like(rounded[0]), *rounded, *shape)
    for mine, right in zip(found[1:], wanted[1:], strict=True):
        assert_close(mine[0].float(), right[0], rtol=0.01, atol=0.01)
