"""Advantages of tokens that another sampler drew, by every algorithm that learns from episodes."""

import math

import pytest
import torch
from grpo_helpers import attached, rollout_of
from grpo_helpers import config as grpo_config
from helpers import config
from torch.testing import assert_close

from rlmodules import GRPO, PPO

REWARDS = [1.0, 0.0, 0.25, 0.5, 2.0, -2.0, 0.0, 1.0]
MODULES = {
    "ppo": lambda **more: PPO(config(batch_size=8, mini_batch_size=8, **more)),
    "grpo": lambda **more: GRPO(
        grpo_config(batch_size=8, mini_batch_size=8, num_generations=4, **more)
    ),
}


@pytest.mark.parametrize(
    ("level", "cap", "weight", "capped"),
    [  # each token: policy 1.5 times as likely as what drew it
        ("token", 3.0, 1.5, 0.0),
        ("token", 1.2, 1.2, 1.0),
        ("sequence", 3.0, 2.25, 0.0),  # of two tokens
        ("sequence", 2.0, 2.0, 1.0),
    ],
)
@pytest.mark.parametrize("name", MODULES)
def test_what_a_token_teaches_is_weighed_by_what_drew_it(name, level, cap, weight, capped):
    rollout = rollout_of(REWARDS, drawn=-math.log(1.5))
    plain, none = attached(MODULES[name]()).learn_from(rollout)
    corrected = attached(MODULES[name](sampler_is=level, sampler_is_cap=cap))
    experience, metrics = corrected.learn_from(rollout)
    assert corrected.recompute
    assert plain.advantages.abs().sum() > 0
    assert_close(experience.advantages, weight * plain.advantages)
    assert metrics["rollout/sampler_is_weight"] == pytest.approx(weight)
    assert metrics["rollout/sampler_is_capped"] == capped
    assert not any("sampler_is" in name for name in none)


@pytest.mark.parametrize("name", MODULES)
def test_tokens_that_the_policy_drew_weigh_one(name):
    rollout = rollout_of(REWARDS, kl=-0.7, drawn=-0.7)
    plain, _ = attached(MODULES[name]()).learn_from(rollout)
    experience, _ = attached(MODULES[name](sampler_is="token")).learn_from(rollout)
    assert torch.equal(experience.advantages, plain.advantages)
