"""PPO's surrogate, value and entropy losses: hand-worked numbers, gradients and invariances."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlmodules.functional.policy_losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy_bonus,
    importance_sampling_loss,
)

EXACT = {"rtol": 1e-5, "atol": 1e-6}


def surrogate(batch, num_actions, clip_ratio=0.2):
    return clipped_surrogate_loss(**batch, num_actions=num_actions, clip_ratio=clip_ratio)


def value(batch, num_actions, value_clip=0.2):
    return clipped_value_loss(**batch, num_actions=num_actions, value_clip=value_clip)


def entropy(batch, num_actions):
    return entropy_bonus(**batch, num_actions=num_actions)


LOSSES = {
    "surrogate": (surrogate, "logprobs_BA", ("old_logprobs_BA", "advantages_BA")),
    "value": (value, "values_BA", ("old_values_BA", "returns_BA")),
    "entropy": (entropy, "entropy_BA", ()),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def ragged_batch(name: str) -> dict[str, torch.Tensor]:
    """Four episodes of 5, 1, 3 and 2 actions, with ratios on both sides of the clip range."""
    generator = torch.Generator().manual_seed(0)
    _, trained, others = LOSSES[name]
    batch = {key: torch.randn(4, 5, generator=generator) for key in (trained, *others)}
    batch["mask_BA"] = torch.arange(5)[None, :] < torch.tensor([5, 1, 3, 2])[:, None]
    return batch


def loss_and_gradient(name, batch, num_actions=11.0):
    loss, trained, _ = LOSSES[name]
    leaf = batch[trained].clone().requires_grad_()
    total, metrics = loss({**batch, trained: leaf}, num_actions)
    total.backward()
    return total.detach(), leaf.grad, metrics


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers])


# --- clipped surrogate ---


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [  # objective = min(ratio * A, clip(ratio, 0.8, 1.2) * A)
        (1.1, 2.0, 2.2, False),  # inside
        (0.9, -1.0, -0.9, False),
        (1.5, 2.0, 2.4, True),  # min(3.0, 2.4): good action already more likely, stop
        (0.5, -2.0, -1.6, True),  # min(-1.0, -1.6): bad action already less likely, stop
        (0.5, 2.0, 1.0, False),  # min(1.0, 1.6): good action became unlikely, undo
        (1.5, -2.0, -3.0, False),  # min(-3.0, -2.4): bad action became likely, undo
    ],
)
def test_surrogate_of_one_action_matches_numbers_worked_by_hand(
    ratio, advantage, objective, clipped
):
    logprobs = row(-1.0 + math.log(ratio)).requires_grad_()
    batch = {
        "logprobs_BA": logprobs,
        "old_logprobs_BA": row(-1.0),
        "advantages_BA": row(advantage),
        "mask_BA": torch.ones(1, 1, dtype=torch.bool),
    }
    loss, metrics = surrogate(batch, num_actions=4)
    loss.backward()
    assert loss.item() == pytest.approx(-objective / 4, rel=1e-5)
    # d ratio / d logprob = ratio, so the gradient is -ratio * A / 4, and none once clipped.
    expected = 0.0 if clipped else -ratio * advantage / 4
    assert logprobs.grad.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["clip_fraction"].item() == float(clipped)


def test_surrogate_sums_over_actions_and_divides_by_num_actions():
    batch = {
        "logprobs_BA": torch.tensor([[1.5, 0.9, 1.0], [0.5, 7.0, 7.0]]).log(),
        "old_logprobs_BA": torch.zeros(2, 3),
        "advantages_BA": torch.tensor([[1.0, 2.0, 3.0], [-4.0, 9.0, 9.0]]),
        "mask_BA": torch.tensor([[True, True, True], [True, False, False]]),
    }
    # Objectives: min(1.5, 1.2) + 0.9 * 2 + 3 + min(-2, -3.2) = 1.2 + 1.8 + 3 - 3.2 = 2.8.
    loss, metrics = surrogate(batch, num_actions=7)
    assert loss.item() == pytest.approx(-2.8 / 7, rel=1e-5)
    # Metrics are means over the four actions at hand, not over seven.
    assert metrics["clip_fraction"].item() == pytest.approx(0.5)
    assert metrics["ratio"].item() == pytest.approx((1.5 + 0.9 + 1.0 + 0.5) / 4, rel=1e-5)
    # approx_kl is k3, ratio - 1 - ln ratio: (0.094535 + 0.005361 + 0 + 0.193147) / 4.
    assert metrics["approx_kl"].item() == pytest.approx(0.073261, abs=1e-6)


def test_surrogate_clips_at_the_ratio_it_was_given():
    batch = {
        "logprobs_BA": torch.tensor([[2.0, 0.1]]).log(),
        "old_logprobs_BA": torch.zeros(1, 2),
        "advantages_BA": row(1.0, -1.0),
        "mask_BA": torch.ones(1, 2, dtype=torch.bool),
    }
    # eps = 0.3: min(2, 1.3) + min(-0.1, -0.7) = 0.6; a lower bound of 1/1.3 would give 0.531.
    loss, _ = surrogate(batch, num_actions=1, clip_ratio=0.3)
    assert loss.item() == pytest.approx(-0.6, rel=1e-5)


def test_on_policy_the_surrogate_gradient_is_the_plain_policy_gradient():
    batch = ragged_batch("surrogate")
    batch["old_logprobs_BA"] = batch["logprobs_BA"]
    loss, gradient, metrics = loss_and_gradient("surrogate", batch)
    advantages = torch.where(batch["mask_BA"], batch["advantages_BA"], 0.0)
    assert_close(gradient, -advantages / 11, **EXACT)
    assert_close(loss, -advantages.sum() / 11, **EXACT)
    assert metrics["ratio"].item() == 1.0
    assert metrics["approx_kl"].item() == 0.0 and metrics["clip_fraction"].item() == 0.0


def test_a_descent_step_makes_good_actions_likelier_and_bad_ones_less_likely():
    batch = ragged_batch("surrogate")
    batch["old_logprobs_BA"] = batch["logprobs_BA"]
    _, gradient, _ = loss_and_gradient("surrogate", batch)
    mask = batch["mask_BA"]
    assert torch.equal((-gradient[mask]).sign(), batch["advantages_BA"][mask].sign())


def test_approx_kl_is_the_exact_kl_from_old_to_new_under_enumeration():
    # One action for each token of a uniform old policy: the mean is the expectation under it.
    new = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    batch = {
        "logprobs_BA": torch.cat([new.log(), row(5.0)], 1),
        "old_logprobs_BA": torch.full((1, 5), math.log(0.25)),
        "advantages_BA": torch.zeros(1, 5),
        "mask_BA": torch.tensor([[True, True, True, True, False]]),
    }
    # KL(old || new) = -ln 4 - (ln 0.1 + ln 0.2 + ln 0.3 + ln 0.4) / 4 = 0.121777;
    # KL(new || old) would be 0.106440.
    _, metrics = surrogate(batch, num_actions=1)
    assert metrics["approx_kl"].item() == pytest.approx(0.121777, abs=1e-5)


# --- clipped value loss ---


@pytest.mark.parametrize(
    ("v", "target", "expected", "slope", "clipped"),
    [  # V_old = 1, eps = 0.2: expected = max((V - R)^2, (V_clipped - R)^2) / 2
        (1.1, 2.0, 0.405, -0.9, False),  # inside: 0.9^2 / 2
        (1.5, 2.0, 0.320, 0.0, True),  # max(0.25, 0.8^2) / 2: went far enough towards R, stop
        (0.5, 0.0, 0.320, 0.0, True),  # max(0.25, 0.8^2) / 2
        (1.5, 0.0, 1.125, 1.5, False),  # max(2.25, 1.2^2) / 2: went away from R, undo
        (0.5, 2.0, 1.125, -1.5, False),  # max(2.25, 1.2^2) / 2
    ],
)
def test_value_loss_of_one_action_matches_numbers_worked_by_hand(
    v, target, expected, slope, clipped
):
    values = row(v).requires_grad_()
    batch = {
        "values_BA": values,
        "old_values_BA": row(1.0),
        "returns_BA": row(target),
        "mask_BA": torch.ones(1, 1, dtype=torch.bool),
    }
    loss, metrics = value(batch, num_actions=4)
    loss.backward()
    assert loss.item() == pytest.approx(expected / 4, rel=1e-5)
    assert values.grad.item() == pytest.approx(slope / 4, rel=1e-5)
    assert metrics["value_clip_fraction"].item() == float(clipped)


def test_value_loss_sums_over_actions_and_divides_by_num_actions():
    batch = {
        "values_BA": torch.tensor([[1.0, 2.0], [4.0, 50.0]]),
        "old_values_BA": torch.tensor([[1.0, 2.0], [0.0, 50.0]]),
        "returns_BA": torch.tensor([[0.0, 4.0], [4.0, 0.0]]),
        "mask_BA": torch.tensor([[True, True], [True, False]]),
    }
    # eps = 1: (1 + 4 + max(0, (1 - 4)^2)) / 2 = 7.
    loss, metrics = value(batch, num_actions=10, value_clip=1.0)
    assert loss.item() == pytest.approx(0.7, rel=1e-5)
    assert metrics["value_clip_fraction"].item() == pytest.approx(1 / 3)


def test_the_value_gradient_inside_the_clip_range_is_that_of_the_squared_error():
    batch = ragged_batch("value")
    batch["values_BA"] = batch["old_values_BA"] + 0.19 * torch.tanh(batch["values_BA"])
    _, gradient, _ = loss_and_gradient("value", batch)
    error = torch.where(batch["mask_BA"], batch["values_BA"] - batch["returns_BA"], 0.0)
    assert_close(gradient, error / 11, **EXACT)


def test_no_value_counts_as_clipped_inside_the_clip_range():
    generator = torch.Generator().manual_seed(1)
    old, move, returns = (torch.randn(50, 20, generator=generator) for _ in range(3))
    batch = {
        "values_BA": old + 0.19 * torch.tanh(move),
        "old_values_BA": old,
        "returns_BA": returns,
        "mask_BA": torch.ones(50, 20, dtype=torch.bool),
    }
    _, metrics = value(batch, num_actions=1000)
    assert metrics["value_clip_fraction"].item() == 0.0


# --- entropy bonus ---


def test_entropy_bonus_matches_numbers_worked_by_hand():
    batch = {
        "entropy_BA": torch.tensor([[1.0, 2.0], [3.0, 90.0]]),
        "mask_BA": torch.tensor([[True, True], [True, False]]),
    }
    loss, metrics = entropy(batch, num_actions=12)
    assert loss.item() == pytest.approx(-(1 + 2 + 3) / 12)
    assert metrics["entropy"].item() == pytest.approx(2.0)


def test_minimising_the_entropy_bonus_flattens_the_policy():
    logits = torch.tensor([[[3.0, 0.0, -1.0]]], requires_grad=True)

    def entropy_of(logits):
        return torch.distributions.Categorical(logits=logits).entropy()

    before = entropy_of(logits)
    batch = {"entropy_BA": before, "mask_BA": torch.ones(1, 1, dtype=torch.bool)}
    entropy(batch, num_actions=1)[0].backward()
    assert entropy_of(logits.detach() - 0.1 * logits.grad).item() > before.item() + 1e-3


# --- what every loss must keep ---


@every_loss
def test_batch_order_changes_nothing(name):
    batch, order = ragged_batch(name), [2, 0, 3, 1]
    loss, gradient, metrics = loss_and_gradient(name, batch)
    shuffled = {key: tensor[order] for key, tensor in batch.items()}
    other_loss, other_gradient, other_metrics = loss_and_gradient(name, shuffled)
    assert_close(other_loss, loss, **EXACT)
    assert_close(other_gradient, gradient[order], **EXACT)
    assert_close(other_metrics, metrics, **EXACT)


@every_loss
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    batch = ragged_batch(name)
    loss, gradient, metrics = loss_and_gradient(name, batch)

    def pad(x: torch.Tensor) -> torch.Tensor:
        filler = torch.full((4, 6), 0 if x.dtype == torch.bool else 3).to(x.dtype)
        return torch.cat([filler, x] if side == "left" else [x, filler], 1)

    padded = {key: pad(tensor) for key, tensor in batch.items()}
    other_loss, other_gradient, other_metrics = loss_and_gradient(name, padded)
    kept = slice(6, None) if side == "left" else slice(None, 5)
    assert_close(other_loss, loss, **EXACT)
    assert_close(other_gradient[:, kept], gradient, **EXACT)
    assert other_gradient.count_nonzero() == gradient.count_nonzero()
    assert_close(other_metrics, metrics, **EXACT)


@every_loss
@pytest.mark.parametrize("split", [(1, 1, 1, 1), (1, 3), (2, 2)])
def test_accumulated_minibatches_add_up_to_the_whole_step(name, split):
    batch = ragged_batch(name)
    loss, gradient, _ = loss_and_gradient(name, batch)
    pieces = {key: tensor.split(split) for key, tensor in batch.items()}
    parts = [
        loss_and_gradient(name, {key: tensors[i] for key, tensors in pieces.items()})
        for i in range(len(split))
    ]
    assert_close(sum(part[0] for part in parts), loss, **EXACT)
    assert_close(torch.cat([part[1] for part in parts]), gradient, **EXACT)


@every_loss
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_non_finite_padding_poisons_neither_loss_nor_gradient_nor_metrics(name, poison):
    batch = ragged_batch(name)
    clean = loss_and_gradient(name, batch)
    _, trained, others = LOSSES[name]
    mask = batch["mask_BA"]
    for keys in [(key,) for key in (trained, *others)] + [(trained, *others)]:
        dirty = dict(batch)
        for key in keys:
            dirty[key] = batch[key].masked_fill(~mask, poison)
        loss, gradient, metrics = loss_and_gradient(name, dirty)
        assert_close(loss, clean[0], **EXACT, msg=f"loss, {poison} in {keys}")
        assert_close(gradient, clean[1], **EXACT, msg=f"gradient, {poison} in {keys}")
        assert_close(metrics, clean[2], **EXACT, msg=f"metrics, {poison} in {keys}")


@every_loss
def test_masked_actions_get_no_gradient_and_the_others_do(name):
    batch = ragged_batch(name)
    _, gradient, _ = loss_and_gradient(name, batch)
    assert gradient[~batch["mask_BA"]].count_nonzero() == 0
    assert gradient[batch["mask_BA"]].count_nonzero() >= 3


@every_loss
def test_the_loss_halves_when_num_actions_doubles(name):
    batch = ragged_batch(name)
    loss, gradient, metrics = loss_and_gradient(name, batch, num_actions=11.0)
    half, half_gradient, same_metrics = loss_and_gradient(name, batch, num_actions=22.0)
    assert_close(half, loss / 2, **EXACT)
    assert_close(half_gradient, gradient / 2, **EXACT)
    assert_close(same_metrics, metrics, **EXACT)


@every_loss
def test_a_minibatch_without_actions_gives_zero_and_metrics_carry_no_graph(name):
    batch = ragged_batch(name)
    batch["mask_BA"] = torch.zeros(4, 5, dtype=torch.bool)
    loss, gradient, metrics = loss_and_gradient(name, batch)
    assert loss.item() == 0.0 and gradient.count_nonzero() == 0
    assert all(math.isfinite(metric.item()) for metric in metrics.values())
    assert not any(metric.requires_grad for metric in metrics.values())


def test_the_importance_sampling_loss_is_the_ratio_times_the_advantage_unclipped():
    loss, metrics = importance_sampling_loss(
        logprobs_BA=torch.tensor([[math.log(0.5), math.log(0.1), math.nan]]),
        old_logprobs_BA=torch.tensor([[math.log(0.25), math.log(0.2), 0.0]]),
        advantages_BA=torch.tensor([[3.0, -1.0, 7.0]]),
        mask_BA=torch.tensor([[True, True, False]]),
        num_actions=4.0,
    )
    assert loss.item() == pytest.approx(-(2.0 * 3.0 - 0.5 * 1.0) / 4)
    assert metrics["ratio"].item() == pytest.approx(1.25)
    expected = ((2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))) / 2
    assert metrics["approx_kl"].item() == pytest.approx(expected)
