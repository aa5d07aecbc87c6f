"""Truncated importance weights: hand-worked numbers, and the gradient by exact enumeration."""

import itertools
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from rlmodules.functional import sampler_weights

LOG2 = math.log(2)
RATIOS = tensor([[LOG2, LOG2, -LOG2], [2 * LOG2, 9.0, 9.0]])
"""Log-ratios of two episodes; the second has one action."""
MASK = tensor([[1, 1, 1], [1, 0, 0]]).bool()


def weights_of(log_ratio, mask, level, cap):
    drawn = torch.full_like(log_ratio, -3.0)
    return sampler_weights(
        logprobs_BA=drawn + log_ratio,
        drawn_logprobs_BA=drawn,
        mask_BA=mask,
        level=level,
        cap=cap,
    )


@pytest.mark.parametrize(
    ("level", "cap", "weights", "capped"),
    [
        ("token", 10.0, [[2, 2, 0.5], [4, 1, 1]], [[0, 0, 0], [0, 0, 0]]),
        ("token", 1.5, [[1.5, 1.5, 0.5], [1.5, 1, 1]], [[1, 1, 0], [1, 0, 0]]),
        ("sequence", 10.0, [[2, 2, 2], [4, 1, 1]], [[0, 0, 0], [0, 0, 0]]),  # 2 * 2 * 1/2
        ("sequence", 3.0, [[2, 2, 2], [3, 1, 1]], [[0, 0, 0], [1, 0, 0]]),
    ],
)
def test_weights_by_hand(level, cap, weights, capped):
    found, cut = weights_of(RATIOS, MASK, level, cap)
    assert_close(found, tensor(weights).float())
    assert cut.tolist() == tensor(capped).bool().tolist()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_is_no_action_counts_for_nothing_and_nothing_overflows(level):
    log_ratio = RATIOS.clone()
    log_ratio[1, 1:] = torch.nan
    log_ratio[0, 0] = 500.0  # exp is infinite
    found, _ = weights_of(log_ratio, MASK, level, 4.0)
    assert found.isfinite().all() and found[0, 0] == 4 and (found[1, 1:] == 1).all()


LOGITS = tensor([[0.3, -0.8, 0.1], [1.0, 0.2, -0.5]])
"""Of the policy, for a first and a second token; they do not depend on each other."""
SAMPLER = tensor([[-0.2, 0.4, 0.6], [0.1, 0.9, -1.0]])
ADVANTAGES = tensor([1.0, -0.4, 0.7, 0.2, 2.0, -1.5, 0.5, 0.3, -0.9])
"""Of the nine texts of two tokens."""


def expected_gradients(level, cap=1e6):
    """By the policy's logits: of E_pi[A], and the corrected estimator's mean under the sampler."""
    texts = tensor(list(itertools.product(range(3), repeat=2)))
    mask = torch.ones_like(texts).bool()
    drawn = torch.stack([SAMPLER.log_softmax(1)[i, texts[:, i]] for i in range(2)], 1)
    right, logits = (LOGITS.clone().requires_grad_() for _ in range(2))
    of_texts = sum(right.log_softmax(1)[i, texts[:, i]] for i in range(2))
    (of_texts.exp() * ADVANTAGES).sum().backward()
    logprobs = torch.stack([logits.log_softmax(1)[i, texts[:, i]] for i in range(2)], 1)
    weights, _ = sampler_weights(
        logprobs_BA=logprobs.detach(),
        drawn_logprobs_BA=drawn,
        mask_BA=mask,
        level=level,
        cap=cap,
    )
    chance = drawn.sum(1, keepdim=True).exp()
    (chance * weights * ADVANTAGES[:, None] * logprobs).sum().backward()
    return right.grad, logits.grad


def test_weights_of_sequences_give_the_policys_own_gradient_under_exact_enumeration():
    right, found = expected_gradients("sequence")
    assert_close(found, right)


def test_weights_of_tokens_leave_a_bias_and_so_does_a_cap():
    right, found = expected_gradients("token")
    assert not torch.allclose(found, right, atol=0.01)
    right, found = expected_gradients("sequence", cap=1.0)
    assert not torch.allclose(found, right, atol=0.01)


def test_weights_of_tokens_are_right_where_a_text_is_one_token():
    """E_mu[w A grad log pi] = sum over tokens of pi A grad log pi."""
    logits = LOGITS[:1].clone().requires_grad_()
    logprobs, drawn = logits.log_softmax(1), SAMPLER[:1].log_softmax(1)
    weights, _ = sampler_weights(
        logprobs_BA=logprobs.detach().T,
        drawn_logprobs_BA=drawn.T,
        mask_BA=torch.ones(3, 1).bool(),
        level="token",
        cap=1e6,
    )
    advantages = tensor([1.0, -2.0, 0.5])
    (found,) = torch.autograd.grad((drawn.exp() * weights.T * advantages * logprobs).sum(), logits)
    (right,) = torch.autograd.grad((logits.softmax(1) * advantages).sum(), logits)
    assert_close(found, right)
