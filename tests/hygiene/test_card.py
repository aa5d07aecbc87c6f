"""The card that is none (``card_helpers``): right numbers, and it notices all that crosses."""

import pytest
import torch
from card_helpers import OnCard, card

from rlmodules.algorithms.means import Means


def test_what_is_on_it_computes_and_has_gradients(monkeypatch):
    layer = torch.nn.Linear(3, 2)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    layer(x).square().sum().backward()
    right = layer.weight.grad.clone()
    layer.zero_grad()
    with card(monkeypatch) as trace:
        layer.to("cuda:0")
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        assert isinstance(layer.weight, OnCard) and layer.weight.device == torch.device("cuda:0")
        layer(x.to("cuda:0")).square().sum().backward()
        assert torch.equal(layer.weight.grad.inner, right)
        before = layer.weight.detach().inner.clone()
        optimizer.step()
        moved = before - layer.weight.detach().inner
    assert torch.allclose(moved, 0.1 * right.sign() + 0.1 * 0.01 * before, atol=1e-6)
    assert trace.waits == {}
    assert sum(trace.of("to card").values()) == 3  # weight, bias, x


CROSSINGS = {
    "item": (lambda x: x[0].item(), "read"),
    "float": (lambda x: float(x[0]), "read"),
    "tolist": (lambda x: x.tolist(), "read"),
    "if": (lambda x: bool((x > 1).any()), "read"),
    "equal": (lambda x: torch.equal(x, x), "read"),
    "allclose": (lambda x: torch.allclose(x, x), "read"),
    "isfinite": (lambda x: not torch.isfinite(x).all(), "read"),
    "cpu": (lambda x: x.cpu(), "to host"),
    "to": (lambda x: x.to("cpu", torch.float64), "to host"),
    "copy_": (lambda x: torch.zeros(3).copy_(x), "to host"),
    "mask": (lambda x: x[x > 1], "size"),
    "set by mask": (lambda x: x.index_put_((x > 1,), x[:1]), "size"),
    "nonzero": (lambda x: x.nonzero(), "size"),
    "unique": (lambda x: x.unique(), "size"),
    "where": (lambda x: torch.where(x > 1), "size"),
    "masked_select": (lambda x: x.masked_select(x > 1), "size"),
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device=x.device), "to card"),
    "from cpu": (lambda x: x.copy_(torch.ones(3)), "to card"),
    "indices": (lambda x: x[torch.tensor([0, 2])], "to card"),
}


@pytest.mark.parametrize("name", CROSSINGS)
def test_each_way_across_is_noticed(name, monkeypatch):
    cross, kind = CROSSINGS[name]
    with card(monkeypatch) as trace:
        x = torch.arange(3, device="cuda:0", dtype=torch.float32)
        assert not trace.crossings
        cross(x)
    assert [found for found, _ in trace.crossings] == [kind]
    assert trace.crossings.total() == 1


def test_what_stays_on_it_crosses_nothing(monkeypatch):
    with card(monkeypatch) as trace:
        x = torch.arange(6, device="cuda:0", dtype=torch.float32).view(2, 3)
        mask = x > 2
        x[:, torch.tensor(1)].add_(1)  # a number's index is no copy
        y = torch.zeros_like(x).masked_scatter(mask, x).masked_fill(mask, 1.0)
        y += torch.where(mask, x, 0.0).softmax(-1).sort(-1).values.cumsum(-1)
        y[:, 0] = 3.0
        assert y.gather(1, x.argmax(1)[:, None]).shape == (2, 1)
        assert trace.crossings.total() == 0
        assert y[:, 0].tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.stack([x, torch.ones(3)]),
        lambda x: torch.nn.functional.linear(x, torch.ones(2, 3)),
        lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, x),
        lambda x: x.gather(0, torch.tensor([0])),
        lambda x: x.index_put((torch.tensor([0]),), torch.ones(1)),
        lambda x: torch.ones(2)[x.long()],
    ],
)
def test_tensors_of_two_devices_do_not_mix(mix, monkeypatch):
    with card(monkeypatch):
        x = torch.zeros(3, device="cuda:0")
        assert (x + torch.tensor(1.0)).tolist() == [1.0, 1.0, 1.0]  # a number may
        with pytest.raises(RuntimeError, match="tensors of cuda:0 and"):
            mix(x)


def test_means_are_read_once_and_are_what_they_are_on_a_cpu(monkeypatch):
    values = torch.rand(5, 2)

    def add(means, values):
        for loss, kl in values:
            means.add({"loss": loss, "kl": kl, "plain": 0.5}, weight=3)
        means.add({"loss": 0.25})

    there = Means()
    add(there, values)
    with card(monkeypatch) as trace:
        here = Means()
        add(here, values.to("cuda:0"))
        assert trace.waits == {}
        assert here.state_dict() == there.state_dict()
        assert trace.waits == {"rlmodules/algorithms/means.py:_read": 1}
        assert here.compute(lambda x: x) == there.compute(lambda x: x)
    by_hand: dict[str, float] = {"loss": 0.0}
    for loss in values[:, 0].tolist():
        by_hand["loss"] += loss * 3
    assert there.sums["loss"] == by_hand["loss"] + 0.25 and there.counts["loss"] == 16


def test_what_was_cleared_or_replaced_is_not_read_later(monkeypatch):
    with card(monkeypatch) as trace:
        means = Means()
        means.add({"x": torch.ones((), device="cuda:0")})
        means.clear()
        assert means.compute(lambda x: x) == {}
        means.add({"x": torch.ones((), device="cuda:0")})
        means.load_state_dict({"sums": {"x": 5.0}, "counts": {"x": 2.0}})
        assert means.compute(lambda x: x) == {"x": 2.5}
        assert trace.waits == {}
