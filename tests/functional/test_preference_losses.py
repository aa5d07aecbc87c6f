"""The DPO family, ORPO and Bradley-Terry against TRL's own values and against the formulas."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlmodules.functional import (
    DPO_LOSSES,
    DPOShape,
    PairLogps,
    bradley_terry_loss,
    dpo_loss,
    multi_objective_loss,
    orpo_loss,
    pair_metrics,
)

t = torch.tensor
PAIRS = {
    "chosen": [-3.006, -5.42, -2.376, -2.284],
    "rejected": [-6.62, -1.887, -5.487, -9.04],
    "ref_chosen": [-3.821, -2.672, -3.706, -4.994],
    "ref_rejected": [-3.658, -2.743, -5.498, -7.824],
    "chosen_lengths": [3.0, 5.0, 2.0, 4.0],
    "rejected_lengths": [4.0, 2.0, 3.0, 6.0],
}
BETA = 0.5
TRL = {  # DPOTrainer._compute_loss of TRL 1.16.0 on these sums; smoothing 0.1 where marked
    "sigmoid": 0.6609507203102112,
    "hinge": 0.7856250405311584,
    "ipo": 1.010026216506958,
    "robust": 0.576294481754303,
    "exo_pair": 0.45102331042289734,
    "nca_pair": 1.4476213455200195,
    "bco_pair": 1.2548460960388184,
    "sppo_hard": 6.36942195892334,
    "aot": 0.6983025074005127,
    "aot_unpaired": 0.49283137917518616,
    "apo_zero": 0.8466929793357849,
    "apo_down": 0.9278984069824219,
    "discopop": 0.6908847093582153,
    "sft": 0.9347142577171326,
    "sigmoid_norm": 0.6193615198135376,
    "simpo": 0.8245789408683777,  # CPOTrainer.cpo_loss, of the policy's sums a token
}
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


def pairs(rows=slice(None), **changes):
    return PairLogps(**{name: t(column)[rows] for name, column in (PAIRS | changes).items()})


def loss_of(types, logps=None, smoothing=0.0, num_pairs=4.0, num_tokens=14.0):
    types = {types: 1.0} if isinstance(types, str) else types
    return dpo_loss(
        logps=logps or pairs(),
        loss_types=types,
        shape=DPOShape(BETA, smoothing),
        num_pairs=num_pairs,
        num_tokens=num_tokens,
    )[0]


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_each_loss_has_trls_value(name):
    smoothing = 0.1 if name in SMOOTHED else 0.0
    free = {"ref_chosen": [0.0] * 4, "ref_rejected": [0.0] * 4} if name == "simpo" else {}
    found = loss_of(name, pairs(**free), smoothing=smoothing)
    assert float(found) == pytest.approx(TRL[name], abs=1e-5)


def test_cpo_is_dpo_without_a_reference_and_sft_beside_it():
    """CPOTrainer.cpo_loss of TRL 1.16.0, and its likelihood, a token."""
    zeros = {"ref_chosen": [0.0] * 4, "ref_rejected": [0.0] * 4}
    wanted = 0.5753371119499207 + 0.7 * TRL["sft"]
    found = loss_of({"sigmoid": 1.0, "sft": 0.7}, pairs(**zeros))
    assert float(found) == pytest.approx(wanted, abs=1e-5)


def test_several_losses_add_up_with_their_weights():
    mixed = loss_of({"sigmoid": 0.7, "sft": 0.2, "bco_pair": 1.0})
    wanted = 0.7 * TRL["sigmoid"] + 0.2 * TRL["sft"] + TRL["bco_pair"]
    assert float(mixed) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", sorted(set(DPO_LOSSES) - {"aot", "aot_unpaired"}))
def test_a_batch_in_two_parts_adds_up_to_the_whole(name):
    smoothing = 0.1 if name in SMOOTHED else 0.0
    parts = [loss_of(name, pairs(rows), smoothing) for rows in (slice(0, 1), slice(1, 4))]
    assert_close(sum(parts), loss_of(name, smoothing=smoothing))


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_losses_push_the_sides_the_way_they_should(name):
    """At the reference, a step against the gradient prefers the chosen response more."""
    smoothing = 0.1 if name in SMOOTHED else 0.0
    chosen = t([-3.0, -4.0]).requires_grad_()
    rejected = t([-3.5, -5.0]).requires_grad_()
    lengths = torch.full((2,), 4.0)
    x = PairLogps(chosen, rejected, chosen.detach(), rejected.detach(), lengths, lengths)
    up, down = torch.autograd.grad(
        loss_of(name, x, smoothing), (chosen, rejected), allow_unused=True
    )
    if name == "discopop":  # not convex: at the reference its gate pulls the other way (fig. 2)
        assert (up > 0).all() and (down < 0).all()
        return
    if name == "apo_down":  # both fall, the rejected one further: at beta's slope of 1/4 each
        assert (up == 0).all() and (down > 0).all()
        return
    assert (up < 0).all()
    assert down is None if name == "sft" else (down >= 0).all()
    if name not in ("sft", "nca_pair"):
        assert (down > 0).all()


@pytest.mark.parametrize("name", sorted(set(DPO_LOSSES) - {"sppo_hard", "ipo", "discopop"}))
@pytest.mark.parametrize("shift", [-400.0, 400.0])
def test_differences_of_hundreds_of_nats_stay_finite(name, shift):
    smoothing = 0.1 if name in SMOOTHED else 0.0
    chosen = t([-500.0 + shift, -3.0]).requires_grad_()
    other = t([-500.0, -3.0])
    x = PairLogps(chosen, other, other, other, t([9.0, 9.0]), t([9.0, 9.0]))
    loss = loss_of(name, x, smoothing)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(chosen.grad).all()


def test_label_smoothing_of_the_sigmoid_loss_is_conservative_dpo():
    x = pairs()
    p = (BETA * x.delta).double().sigmoid()
    wanted = -(0.8 * p.log() + 0.2 * (1 - p).log()).mean()
    assert float(loss_of("sigmoid", smoothing=0.2)) == pytest.approx(float(wanted), abs=1e-6)


def test_metrics_are_implicit_rewards():
    _, metrics = dpo_loss(
        logps=pairs(),
        loss_types={"sigmoid": 1.0},
        shape=DPOShape(BETA),
        num_pairs=4.0,
        num_tokens=14.0,
    )
    chosen = [(a - b) / 2 for a, b in zip(PAIRS["chosen"], PAIRS["ref_chosen"], strict=True)]
    rejected = [(a - b) / 2 for a, b in zip(PAIRS["rejected"], PAIRS["ref_rejected"], strict=True)]
    assert metrics["reward_chosen"].item() == pytest.approx(sum(chosen) / 4, abs=1e-6)
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert metrics["margin"].item() == pytest.approx(sum(margins) / 4, abs=1e-6)
    assert metrics["accuracy"].item() == sum(m > 0 for m in margins) / 4
    assert metrics["chosen_drift"].item() == pytest.approx(sum(chosen) / 2, abs=1e-6)
    assert not any(m.requires_grad for m in metrics.values())


def test_a_tie_is_half_right():
    assert pair_metrics(t([1.0, 2.0, 3.0]), t([1.0, 1.0, 4.0]))["accuracy"] == 0.5


ORPO = {  # of two tokens each, so that means are half the sums
    "chosen_logps_B": 2 * t([-0.35, -1.2, -0.05, -2.5]),
    "rejected_logps_B": 2 * t([-0.9, -0.8, -3.0, -2.4]),
    "chosen_lengths_B": torch.full((4,), 2.0),
    "rejected_lengths_B": torch.full((4,), 2.0),
    "chosen_text_logps_B": t([-4.0, -6.0, -3.0, -7.0]),
}


def test_orpo_has_trls_value():
    """ORPOTrainer.odds_ratio_loss of TRL 1.16.0: mean log sigmoid -0.51669..., log odds 1.60494."""
    loss, metrics = orpo_loss(**ORPO, beta=0.25, num_pairs=4.0, num_tokens=20.0)
    assert float(loss) == pytest.approx(20.0 / 20.0 + 0.25 * 0.5166981816291809, abs=1e-5)
    assert float(metrics["log_odds"]) == pytest.approx(1.604940414428711, abs=1e-5)


def test_orpo_survives_a_certain_response():
    certain = ORPO | {"chosen_logps_B": torch.zeros(4, requires_grad=True)}
    loss, _ = orpo_loss(**certain, beta=0.25, num_pairs=4.0, num_tokens=20.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(certain["chosen_logps_B"].grad).all()


def test_bradley_terry_by_hand():
    loss, metrics = bradley_terry_loss(
        chosen_B=t([2.0, 0.0]),
        rejected_B=t([1.0, 0.5]),
        margin_B=t([0.25, 0.0]),
        label_smoothing=0.1,
        center_rewards_coefficient=0.01,
        num_pairs=2.0,
    )
    p = [1 / (1 + math.exp(-0.75)), 1 / (1 + math.exp(0.5))]
    wanted = sum(-0.9 * math.log(q) - 0.1 * math.log(1 - q) for q in p) + 0.01 * (9.0 + 0.25)
    assert float(loss) == pytest.approx(wanted / 2, abs=1e-6)
    assert metrics["accuracy"] == 0.5


def test_multi_objective_errors_by_hand():
    nan = float("nan")
    rewards = t([[1.0, 2.0], [0.0, 4.0]]).requires_grad_()
    targets = t([[0.5, nan], [1.0, 1.0]])
    loss, each = multi_objective_loss(
        rewards_BK=rewards,
        targets_BK=targets,
        mask_BK=~targets.isnan(),
        num_rows=2.0,
    )
    assert each.tolist() == pytest.approx([(0.25 + 1.0) / 2, 9.0])
    assert float(loss) == pytest.approx((0.25 + (1.0 + 9.0) / 2) / 2)
    loss.backward()
    assert rewards.grad.tolist() == [pytest.approx([0.5, 0.0]), pytest.approx([-0.5, 1.5])]
