"""KL estimators against exact enumeration, and the adaptive coefficient against its recurrence."""

import math

import pytest
import torch
from torch.testing import assert_close

from rlmodules.functional.kl import KL_ESTIMATORS, adapt_kl_coefficient, exact_kl, kl_estimate

EXACT = {"rtol": 1e-5, "atol": 1e-6}
LN2 = math.log(2)


def two_policies(vocabulary: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return tuple(torch.randn(3, vocabulary, generator=generator) for _ in range(2))


def expected_estimate(logits, ref_logits, estimator):
    """Sum over every token of p(token) times its estimate: no sampling, no noise."""
    logp, logq = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp().detach() * kl_estimate(logp, logq, estimator)).sum(-1)


def gradient(function, logits):
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


# --- estimators ---


@pytest.mark.parametrize(
    ("estimator", "d", "expected"),
    [
        ("k1", LN2, 0.693147),
        ("k1", -LN2, -0.693147),
        ("k2", LN2, 0.240227),  # 0.693147^2 / 2
        ("k2", -LN2, 0.240227),
        ("k3", LN2, 0.193147),  # 1/2 - 1 + 0.693147
        ("k3", -LN2, 0.306853),  # 2 - 1 - 0.693147
        ("k1", 0.0, 0.0),
        ("k2", 0.0, 0.0),
        ("k3", 0.0, 0.0),
    ],
)
def test_each_estimator_matches_numbers_worked_by_hand(estimator, d, expected):
    estimate = kl_estimate(torch.tensor([-1.5 + d]), torch.tensor([-1.5]), estimator)
    assert_close(estimate, torch.tensor([expected]), **EXACT)


def test_k1_is_the_default_estimator():
    estimate = kl_estimate(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.0]]))
    assert estimate.tolist() == [[2.0, -1.0]]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased_under_exact_enumeration(estimator):
    logits, ref_logits = two_policies()
    exact = exact_kl(logits, ref_logits)
    assert_close(expected_estimate(logits, ref_logits, estimator), exact, **EXACT)
    backward = exact_kl(ref_logits, logits)
    assert (backward - exact).abs().min() > 0.1  # the other direction is told apart


def test_k2_is_biased_by_a_known_amount():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    # d = (ln 2, ln 2/3) = (0.693147, -0.405465): E[k2] = (0.480453 + 0.164402) / 4 = 0.161214,
    # while KL = ln(4/3) / 2 = 0.143841.
    assert expected_estimate(p.log(), q.log(), "k2").item() == pytest.approx(0.161214, abs=1e-6)
    assert exact_kl(p.log(), q.log()).item() == pytest.approx(0.143841, abs=1e-6)


def test_exact_kl_is_not_symmetric_and_has_policy_first():
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    # KL(p||q) = 0.9 ln 1.8 + 0.1 ln 0.2 = 0.529008 - 0.160944 = 0.368064;
    # KL(q||p) = 0.5 ln(1/1.8) + 0.5 ln 5 = 0.510826.
    assert exact_kl(p.log(), q.log()).item() == pytest.approx(0.368064, abs=1e-6)
    assert exact_kl(q.log(), p.log()).item() == pytest.approx(0.510826, abs=1e-6)


def test_exact_kl_takes_logits_of_any_offset_and_keeps_leading_dimensions():
    logits, ref_logits = two_policies()
    shifted = exact_kl(logits + 7.0, ref_logits - 3.0)
    assert shifted.shape == (3,)
    assert_close(shifted, exact_kl(logits, ref_logits), **EXACT)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_expected_kl_is_positive_when_the_policy_moved_away_and_grows_with_the_move(estimator):
    logits, _ = two_policies()
    move = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    near, far = (expected_estimate(logits + s * move, logits, estimator) for s in (0.5, 1.0))
    assert (near > 1e-3).all() and (far > near).all()
    assert_close(expected_estimate(logits, logits, estimator), torch.zeros(3), **EXACT)


def test_k1_is_positive_on_a_token_that_the_policy_made_more_likely():
    assert kl_estimate(torch.tensor(-0.1), torch.tensor(-2.0), "k1").item() > 0


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_never_negative(estimator):
    d = torch.linspace(-12, 12, 4001)
    assert (kl_estimate(d, torch.zeros_like(d), estimator) >= 0).all()


def test_k3_stays_accurate_near_zero_where_exp_minus_one_would_cancel():
    d = torch.tensor([1e-3, -1e-3, 3e-4])
    # d^2/2 - d^3/6: float32's exp(-d) - 1 is wrong by up to 6e-8, an error of 12% here.
    expected = torch.tensor([4.998333e-7, 5.001667e-7, 4.49955e-8])
    assert_close(kl_estimate(d, torch.zeros(3), "k3"), expected, rtol=2e-3, atol=0.0)


# --- gradients: why the estimators are values and not losses ---


def test_gradient_of_mean_k1_on_policy_is_zero_in_expectation():
    logits, ref_logits = two_policies()
    k1 = gradient(lambda x: expected_estimate(x, ref_logits, "k1"), logits)
    true = gradient(lambda x: exact_kl(x, ref_logits), logits)
    assert k1.abs().max() < 1e-6
    assert true.abs().max() > 0.1


def test_gradient_of_mean_k2_on_policy_is_that_of_the_kl():
    # E_p[d * grad logp] is the score-function gradient of KL(p || q).
    logits, ref_logits = two_policies()
    k2 = gradient(lambda x: expected_estimate(x, ref_logits, "k2"), logits)
    assert_close(k2, gradient(lambda x: exact_kl(x, ref_logits), logits), **EXACT)


def test_gradient_of_mean_k3_on_policy_is_that_of_the_reversed_kl():
    # E_p[(1 - q/p) grad logp] = -E_q[grad logp], the gradient of KL(q || p).
    logits, ref_logits = two_policies()
    k3 = gradient(lambda x: expected_estimate(x, ref_logits, "k3"), logits)
    assert_close(k3, gradient(lambda x: exact_kl(ref_logits, x), logits), **EXACT)


def test_an_unknown_estimator_is_refused_by_name():
    with pytest.raises(ValueError, match=r"kl_estimator='k4'.*k1.*k2.*k3"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


# --- the adaptive coefficient ---


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.05, 0.10),  # on target: unchanged
        (0.055, 0.101),  # e = 0.1: 0.1 * (1 + 0.1 * 100 / 1000)
        (0.0475, 0.0995),  # e = -0.05
        (0.06, 0.102),  # e = 0.2, the edge
        (0.5, 0.102),  # e = 9, clipped to 0.2
        (0.0, 0.098),  # e = -1, clipped to -0.2
        (-3.0, 0.098),  # a sampled k1 mean can be negative
    ],
)
def test_one_controller_step_matches_numbers_worked_by_hand(kl, expected):
    new = adapt_kl_coefficient(0.1, kl, target=0.05, horizon=1000, num_sequences=100)
    assert new == pytest.approx(expected, rel=1e-9)


def test_the_step_scales_with_sequences_over_horizon():
    def step(n, horizon):
        return adapt_kl_coefficient(1.0, 2.0, target=1.0, horizon=horizon, num_sequences=n) - 1.0

    assert step(64, 10_000) == pytest.approx(0.2 * 64 / 10_000)
    assert step(128, 10_000) == pytest.approx(2 * step(64, 10_000))
    assert step(64, 5_000) == pytest.approx(2 * step(64, 10_000))
    assert step(500, 500) == pytest.approx(0.2)  # a whole horizon at full error: 20%


def test_a_policy_far_off_target_moves_the_coefficient_by_orders_of_magnitude():
    # The system we replace went from 0.0100 to 0.0102 here: it forgot the sequence count.
    up = down = 0.01
    for _ in range(1000):
        up = adapt_kl_coefficient(up, 100.0, target=0.1, horizon=10_000, num_sequences=128)
        down = adapt_kl_coefficient(down, 1e-4, target=0.1, horizon=10_000, num_sequences=128)
    assert up == pytest.approx(0.01 * 1.00256**1000, rel=1e-6)  # 0.129, 12.9 times as much
    assert down == pytest.approx(0.01 * 0.99744**1000, rel=1e-6)
    assert up > 0.12 and down < 0.0008


def test_the_controller_converges_geometrically_in_closed_loop():
    # A policy whose KL is target * c_star / coefficient: within the clip range the recurrence is
    # c' = c + (c_star - c) * n / horizon, so the gap shrinks by exactly 1 - n / horizon a step.
    c_star, coefficient, gap = 0.5, 0.45, -0.05
    for _ in range(40):
        kl = 0.1 * c_star / coefficient
        coefficient = adapt_kl_coefficient(
            coefficient, kl, target=0.1, horizon=1000, num_sequences=100
        )
        gap *= 0.9
        assert coefficient - c_star == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("start", [1e-3, 50.0])
def test_the_controller_converges_from_far_away_on_either_side(start):
    c_star, coefficient, distance = 0.5, start, math.inf
    for _ in range(600):
        kl = 0.1 * c_star / coefficient
        coefficient = adapt_kl_coefficient(
            coefficient, kl, target=0.1, horizon=1000, num_sequences=100
        )
        assert abs(math.log(coefficient / c_star)) <= distance + 1e-12
        distance = abs(math.log(coefficient / c_star))
    assert coefficient == pytest.approx(c_star, rel=1e-6)
