"""KTO's losses against numbers worked by hand."""

import math

import pytest
import torch

from rlmodules.functional import kto_loss

RATIOS, DESIRABLE = [2.0, -1.0, 0.5], [True, False, True]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loss_of(kind="kto", kl=1.0, weights=(1.0, 1.0), num_examples=3.0, beta=0.5):
    ratios = torch.tensor(RATIOS, requires_grad=True)
    anchor = torch.tensor(kl, requires_grad=True)
    loss, metrics = kto_loss(
        logratios_B=ratios,
        desirable_B=torch.tensor(DESIRABLE),
        reference_kl=anchor,
        loss_type=kind,
        beta=beta,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        num_examples=num_examples,
    )
    loss.backward()
    assert anchor.grad is None
    return loss.item(), metrics, ratios.grad


def test_what_is_desirable_is_to_gain_more_than_the_kl_and_what_is_not_less():
    loss, metrics, _ = loss_of()
    each = [1 - sigmoid(0.5 * (2 - 1)), 1 - sigmoid(0.5 * (1 + 1)), 1 - sigmoid(0.5 * (0.5 - 1))]
    assert loss == pytest.approx(sum(each) / 3)
    assert metrics["reward_chosen"].item() == pytest.approx(0.5 * (2 + 0.5) / 2)
    assert metrics["reward_rejected"].item() == pytest.approx(-0.5)
    assert metrics["reference_kl"].item() == 1.0


def test_weights_and_the_steps_count():
    each = [1 - sigmoid(0.5), 1 - sigmoid(1.0), 1 - sigmoid(-0.25)]
    loss, _, gradient = loss_of(weights=(2.0, 3.0), num_examples=6.0)
    assert loss == pytest.approx((2 * each[0] + 3 * each[1] + 2 * each[2]) / 6)
    slopes = [p * (1 - p) * 0.5 for p in each]
    expected = [-2 * slopes[0] / 6, 3 * slopes[1] / 6, -2 * slopes[2] / 6]
    assert gradient.tolist() == pytest.approx(expected)


def test_a_kl_below_0_counts_as_0():
    assert loss_of(kl=-3.0)[0] == pytest.approx(loss_of(kl=0.0)[0])


def test_apo_zero_unpaired_has_no_kl():
    loss, metrics, _ = loss_of("apo_zero_unpaired", kl=7.0)
    each = [1 - sigmoid(1.0), sigmoid(-0.5), 1 - sigmoid(0.25)]
    assert loss == pytest.approx(sum(each) / 3)
    assert "reference_kl" not in metrics


def test_a_batch_of_one_kind_has_no_mean_of_the_other():
    none = torch.tensor([False] * 3)
    _, metrics = kto_loss(
        logratios_B=torch.tensor(RATIOS), desirable_B=none, reference_kl=torch.tensor(0.0),
        loss_type="kto", beta=0.1, desirable_weight=1.0, undesirable_weight=1.0, num_examples=3.0,
    )  # fmt: skip
    assert metrics["reward_chosen"].item() == 0.0
    assert metrics["reward_rejected"].item() == pytest.approx(0.1 * 0.5)
