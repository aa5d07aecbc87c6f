"""Intervals, calibration and correlations against numbers worked out by hand."""

import math

import pytest
import torch

from rlmodules.functional.calibration import (
    calibration_curve,
    calibration_error,
    concordance,
    correlation,
    fit_temperature,
)


def logit(p):
    return math.log(p / (1 - p))


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has_its_gap():
    right = [1] * 8 + [-1] * 2  # right on 8 of 10
    calibrated = torch.tensor([logit(0.8) * side for side in right])
    assert calibration_error(calibrated) == pytest.approx(0.0, abs=1e-6)
    sure = torch.tensor([logit(0.98) * side for side in right])
    assert calibration_error(sure) == pytest.approx(0.18, abs=1e-5)
    assert calibration_curve(sure) == [(pytest.approx(0.98), pytest.approx(0.8), 10)]


def test_bins_are_weighted_by_their_pairs():
    logits = torch.tensor([logit(0.55)] * 3 + [logit(0.95)])
    assert calibration_error(logits) == pytest.approx((3 * 0.45 + 0.05) / 4, abs=1e-6)


def test_the_fitted_temperature_makes_an_overconfident_model_calibrated():
    logits = torch.tensor([logit(0.8) * 3.0] * 8 + [-logit(0.8) * 3.0] * 2)
    assert fit_temperature(logits) == pytest.approx(3.0, rel=1e-4)
    assert fit_temperature(logits / 6) == pytest.approx(0.5, rel=1e-4)
    assert fit_temperature(torch.ones(5)) == pytest.approx(0.02, rel=1e-3)  # always right


def test_correlation_by_hand_and_without_variation():
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert correlation(x, 2 * x + 5) == pytest.approx(1.0)
    assert correlation(x, torch.tensor([1.0, 0.0, 0.0, 1.0])) == pytest.approx(0.0)
    assert correlation(x, torch.ones(4)) == 0.0


def test_concordance_counts_pairs_with_different_targets():
    nan = float("nan")
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5, 7.0])
    targets = torch.tensor([0.0, 1.0, 0.5, 1.0, nan])
    # Pairs with different targets: 01, 02, 03, 12, 23; right: 01, 02, 03, 12; 23 is a tie.
    assert concordance(scores, targets) == (pytest.approx(4.5 / 5), 5)
    assert concordance(scores, torch.ones(5)) == (0.5, 0)
