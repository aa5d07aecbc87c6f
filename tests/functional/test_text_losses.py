"""The losses over demonstrated tokens, worked by hand."""

import math

import pytest
import torch

from rlmodules.functional import sft_loss

LOGPROBS = [math.log(p) for p in (0.5, 0.25, 0.125, 1.0)]
TOP = [True, False, False, True]


def loss(kind, num_tokens=4.0):
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    value, metrics = sft_loss(
        logprobs_N=logprobs, is_top_N=torch.tensor(TOP), loss_type=kind, num_tokens=num_tokens
    )
    (gradient,) = torch.autograd.grad(value, logprobs)
    return value.item(), gradient.tolist(), metrics


def test_nll_is_a_mean_over_tokens():
    value, gradient, metrics = loss("nll")
    assert value == pytest.approx(math.log(2) * (1 + 2 + 3) / 4)
    assert gradient == pytest.approx([-0.25] * 4)
    assert metrics["nll"].item() == pytest.approx(value)
    assert metrics["token_accuracy"].item() == 0.5


def test_dft_weighs_tokens_by_probabilities_that_no_gradient_reaches():
    value, gradient, metrics = loss("dft")
    assert value == pytest.approx(math.log(2) * (0.5 + 2 * 0.25 + 3 * 0.125) / 4)
    assert gradient == pytest.approx([-p / 4 for p in (0.5, 0.25, 0.125, 1.0)])
    assert metrics["nll"].item() == pytest.approx(math.log(2) * 6 / 4)


@pytest.mark.parametrize("kind", ["nll", "dft"])
def test_the_divisor_is_the_optimizer_steps(kind):
    assert loss(kind, 8.0)[0] == pytest.approx(loss(kind, 4.0)[0] / 2)
