"""Weights in half precision are the float32 weights of the same run, rounded."""

import copy

import pytest
import torch
from torch import nn

from rlmodules.models.embedded import tiny_model
from rlmodules.optimizers.building import make_optimizer
from rlmodules.optimizers.config import OPTIMIZERS, OptimizerConfig
from rlmodules.optimizers.masters import Masters

SHAPES = [(64, 80), (9,), (70, 64)]
pytestmark = pytest.mark.filterwarnings("ignore:algo.optimizer.name=adamw_offload saves nothing")


def made(name="adamw", dtype=torch.float32, lr=1e-3, decay=0.1, scale=0.02):
    """Weights that bfloat16 holds exactly, and their optimizer."""
    torch.manual_seed(0)
    starts = [(torch.randn(shape) * scale).bfloat16() for shape in SHAPES]
    weights = [nn.Parameter(start.to(dtype)) for start in starts]
    groups = [
        {"params": weights[:2], "lr": lr, "weight_decay": decay},
        {"params": weights[2:], "lr": 2 * lr, "weight_decay": 0.0},
    ]
    return weights, make_optimizer(OptimizerConfig(name), groups, {id(weights[0])})


def step(weights, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    for p in weights:
        p.grad = torch.randn(p.shape, generator=generator).bfloat16().to(p.dtype)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_half_weights_are_those_of_float32_rounded(name, dtype):
    exact, rounded = made(name), made(name, dtype)
    for number in range(5):
        step(*exact, number)
        step(*rounded, number)
        assert [torch.equal(a.to(dtype), b) for a, b in zip(exact[0], rounded[0], strict=True)] == [
            True
        ] * len(SHAPES)
    assert all(p.dtype == dtype for p in rounded[0])


def test_offloaded_state_takes_the_steps_of_state_in_place():
    plain, offloaded = made("adamw"), made("adamw_offload")
    for number in range(4):
        step(*plain, number)
        step(*offloaded, number)
    assert all(map(torch.equal, plain[0], offloaded[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_was_saved_goes_on_bit_by_bit(name, dtype, tmp_path):
    straight, first = made(name, dtype), made(name, dtype)
    for number in range(3):
        step(*straight, number)
        step(*first, number)
    torch.save({"w": [p.data for p in first[0]], "o": first[1].state_dict()}, tmp_path / "x.pt")
    saved, resumed = torch.load(tmp_path / "x.pt", weights_only=True), made(name, dtype, lr=5.0)
    for p, value in zip(resumed[0], saved["w"], strict=True):
        p.data.copy_(value)
    resumed[1].load_state_dict(copy.deepcopy(saved["o"]))
    for number in range(3, 6):
        step(*straight, number)
        step(*resumed, number)
    assert all(map(torch.equal, straight[0], resumed[0]))
    assert [g["lr"] for g in resumed[1].param_groups] == [g["lr"] for g in straight[1].param_groups]


def test_weights_that_are_loaded_before_the_first_step_are_those_that_it_steps():
    weights, optimizer = made(dtype=torch.bfloat16, lr=1e-6)
    for p in weights:
        p.data.fill_(3.0)
    step(weights, optimizer, 0)
    assert all((p == 3.0).all() for p in weights)


def test_a_learning_rate_that_is_changed_reaches_the_step():
    weights, optimizer = made(dtype=torch.bfloat16)
    step(weights, optimizer, 0)
    before = [p.detach().clone() for p in weights]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(weights, optimizer, 1)
    assert all(map(torch.equal, before, weights))


def test_a_weight_without_a_gradient_stays_and_keeps_no_state():
    weights, optimizer = made(dtype=torch.bfloat16)
    before = weights[1].detach().clone()
    weights[0].grad = torch.ones_like(weights[0])
    optimizer.step()
    assert torch.equal(weights[1], before) and set(optimizer.state_dict()["state"]) == {0}


def test_states_of_other_weights_are_refused():
    (_, half), (_, plain) = made(dtype=torch.bfloat16), made()
    for optimizer, dtype in ((half, torch.bfloat16), (plain, torch.float32)):
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        step(weights, optimizer, 0)
        assert weights[0].dtype == dtype
    for taker, giver in ((half, plain), (plain, half), (made("adamw8bit")[1], half)):
        with pytest.raises(ValueError, match="weights in different types or places"):
            taker.load_state_dict(giver.state_dict())
    assert set(half.state_dict()["state"]) == {0, 1, 2}  # nothing of it was lost


def test_offloading_weights_that_are_on_the_cpu_is_said_to_save_nothing():
    with pytest.warns(UserWarning, match="adamw_offload saves nothing here"):
        made("adamw_offload")


def test_float32_weights_of_adamw_are_left_to_torch():
    assert type(made("adamw")[1]) is torch.optim.AdamW
    assert isinstance(made("adamw", torch.bfloat16)[1], Masters)


def moved(weights, starts):
    changed = [(p.bfloat16() != start).float().flatten() for p, start in zip(weights, starts)]  # noqa: B905
    return torch.cat(changed).mean().item()


@pytest.mark.parametrize("lr", [1e-6, 1e-5])
def test_as_many_weights_move_as_in_float32(lr):
    """Plain AdamW over bfloat16 weights leaves nearly all where they are."""
    shares = {}
    for kind in ("float32", "bfloat16", "plain"):
        dtype = torch.float32 if kind == "float32" else torch.bfloat16
        weights, optimizer = made(dtype=dtype, lr=lr, decay=0.0)
        if kind == "plain":
            optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0, fused=True)
        starts = [p.detach().bfloat16().clone() for p in weights]
        directions = [torch.randn(p.shape) for p in weights]
        for _ in range(40):
            for p, direction in zip(weights, directions, strict=True):
                p.grad = (direction + torch.randn(p.shape)).to(dtype)
            optimizer.step()
        shares[kind] = moved(weights, starts)
    assert abs(shares["bfloat16"] - shares["float32"]) < 0.03
    assert shares["bfloat16"] > 4 * shares["plain"]


def test_a_model_learns_as_in_float32():
    """By how much the loss of one batch falls; plain AdamW over bfloat16 hardly lowers it."""
    ids = torch.randint(3, 250, (4, 24), generator=torch.Generator().manual_seed(0))
    falls = {}
    for kind in ("float32", "bfloat16", "plain"):
        model = tiny_model()[0].bfloat16()
        model = model.float() if kind == "float32" else model
        groups = [{"params": list(model.parameters()), "lr": 1e-5, "weight_decay": 0.0}]
        plain = kind == "plain"
        optimizer = (
            torch.optim.AdamW(groups, fused=True)
            if plain
            else make_optimizer(OptimizerConfig(), groups)
        )
        losses = []
        for _ in range(40):
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        falls[kind] = losses[0] - losses[-1]
    assert falls["float32"] > 0.05
    assert falls["bfloat16"] == pytest.approx(falls["float32"], rel=0.1)
    assert falls["plain"] < 0.5 * falls["float32"]
