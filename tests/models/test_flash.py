"""Packed rows as texts of variable lengths: what a card's kernel is given, and gradients.

The kernel runs on cards alone (``benchmarks/gpu.py`` compares it there). In its place stands what
it is documented to compute: the last token of a text that asks sees the last one that is seen.
"""

from types import SimpleNamespace

import pytest
import torch
from segment_helpers import ROWS, check_same, dense, inputs

from rlmodules.models import attention, flash
from rlmodules.models.attention import segment_attention
from rlmodules.models.segments import encoded


def texts_apart(q, k, v, texts, scaling, window):
    """Of each text: places of what asks and of what is seen, both, values, and weights."""
    ends = [x.tolist() for x in (texts.asked_ends, texts.seen_ends)]
    for p in range(len(ends[0]) - 1):
        asked, seen = (slice(each[p], each[p + 1]) for each in ends)
        keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1)[seen] for x in (k, v))
        asking, count = asked.stop - asked.start, seen.stop - seen.start
        assert asking <= texts.longest[0] and count <= texts.longest[1]
        here, there = torch.arange(asking)[:, None] + count - asking, torch.arange(count)
        hidden = there > here
        if window is not None:
            hidden |= there <= here - window
        scores = torch.einsum("qhd,khd->hqk", q[asked], keys) * scaling
        yield asked, seen, keys, values, scores.masked_fill(hidden, float("-inf"))


def attended(q, k, v, texts, scaling, window):
    """As the kernel's forward pass."""
    said, logsums = torch.empty_like(q), q.new_empty(q.shape[1], len(q))
    for asked, _, _, values, scores in texts_apart(q, k, v, texts, scaling, window):
        said[asked] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        logsums[:, asked] = scores.logsumexp(-1)
    return said, logsums


def differentiated(grad, q, k, v, out, logsums, texts, scaling, window):
    """As the kernel's backward pass."""
    grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
    together = lambda x: x.unflatten(1, (k.shape[1], -1)).sum(2)  # noqa: E731
    for asked, seen, keys, values, scores in texts_apart(q, k, v, texts, scaling, window):
        weights = (scores - logsums[:, asked, None]).exp()
        inner = torch.einsum("qhd,khd->hqk", grad[asked], values)
        inner = inner - (grad[asked] * out[asked]).sum(-1).T[..., None]
        inner = weights * inner * scaling
        grad_q[asked] = torch.einsum("hqk,khd->qhd", inner, keys)
        grad_k[seen] = together(torch.einsum("hqk,qhd->khd", inner, q[asked]))
        grad_v[seen] = together(torch.einsum("hqk,qhd->khd", weights, grad[asked]))
    return grad_q, grad_k, grad_v


@pytest.fixture(autouse=True)
def on_a_card(monkeypatch):
    monkeypatch.setattr(flash, "_forward", attended)
    monkeypatch.setattr(flash, "_backward", differentiated)
    monkeypatch.setattr(attention, "flash_takes", lambda *_: True)


@pytest.mark.parametrize("window", [None, 1, 4], ids=str)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_packed_attention_is_dense_attention_and_so_are_its_gradients(row, window):
    options = {"scaling": 0.3} | ({} if window is None else {"sliding_window": window})
    ours, theirs = inputs(row), inputs(row)
    out, _ = segment_attention(None, *ours, None, unpacked=None, segments=encoded(row), **options)
    wanted = dense(*theirs, row, **options)
    check_same(ours, out, theirs, wanted)


def test_the_operator_is_what_torch_expects_of_one():
    row = ROWS["unequal"]
    q, k, v = (x[0].transpose(0, 1).detach().requires_grad_() for x in inputs(row))
    torch.library.opcheck(flash.flash_segments, (q, k, v, encoded(row), 0.3, None))


@pytest.mark.parametrize(
    ("dtype", "size", "value_size", "softcap"),
    [
        (torch.float32, 64, 64, None),  # no half precision
        (torch.bfloat16, 64, 32, None),  # latent attention
        (torch.bfloat16, 60, 60, None),
        (torch.bfloat16, 512, 512, None),
        (torch.bfloat16, 64, 64, 30.0),
    ],
)
def test_what_the_kernel_does_not_compute_stays_with_ours(
    dtype, size, value_size, softcap, monkeypatch
):
    def heads(size, dtype=dtype):
        return SimpleNamespace(is_cuda=True, shape=(1, 2, 3, size), dtype=dtype)

    for there in (False, True):
        monkeypatch.setattr(flash, "has_flash", lambda there=there: there)
        assert flash.flash_takes(heads(64, torch.bfloat16), heads(64), None) is there
        assert not flash.flash_takes(heads(size), heads(value_size), softcap)


def test_a_card_that_is_too_old_or_of_another_maker_has_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, hip, there in (
        ((8, 0), None, True),
        ((7, 5), None, False),
        ((9, 0), "6", False),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        monkeypatch.setattr(torch.version, "hip", hip)
        flash.has_flash.cache_clear()
        assert flash.has_flash() is there
    flash.has_flash.cache_clear()
