"""Rewards that are weighted sums, normalized part by part: algo.multi_objective_aggregation."""

from types import SimpleNamespace

import pytest
import torch
from grpo_helpers import any_letter, attached, config, groups, lower_case, run
from grpo_helpers import data as data_of
from torch.testing import assert_close

from datamodules import MathEnv, TextGenerationEnv
from datamodules.rewards.weighting import WeightedReward
from rlmodules import GRPO
from rlmodules.algorithms.reward_parts import reward_parts
from rlmodules.functional import decoupled_advantages
from rlmodules.models.embedded import tiny_tokenizer

BY_PART = {"multi_objective_aggregation": "normalize_then_sum"}


def sometimes(prompts, responses, metadata=None):
    """Applies to some responses alone."""
    letters = any_letter(prompts, responses)
    return [None if 0.3 < x < 0.6 else x for x in letters]


def never(prompts, responses, metadata=None):
    return [None] * len(responses)


def weighted(**components):
    return WeightedReward(components, dict(zip(components, (2.0, 0.5), strict=False)))


def test_advantages_are_those_of_the_parts_and_their_weights():
    module = attached(GRPO(config(**BY_PART)))
    rollout = groups(module, reward=weighted(letter=sometimes, lower=lower_case))
    experience, _ = module.learn_from(rollout)
    metrics = [t.metrics for t in rollout.trajectories]
    assert any("reward_letter" not in m for m in metrics)
    parts = torch.tensor([[m.get("reward_letter", torch.nan), m["reward_lower"]] for m in metrics])
    expected = decoupled_advantages(parts, torch.tensor([2.0, 0.5]), 4)
    assert_close(experience.advantages[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 0.5
    plain = attached(GRPO(config())).learn_from(rollout)[0]
    assert not torch.allclose(plain.advantages[:, 0], expected, atol=0.05)


def test_what_no_part_applies_to_and_what_failed_has_no_advantage():
    module = attached(GRPO(config(**BY_PART)))
    rollout = groups(module, reward=weighted(letter=sometimes, none=never))
    missing = [t.unscored for t in rollout.trajectories]
    assert 0 < sum(missing) < 8
    rollout.trajectories[0].failed = True
    advantages = module.learn_from(rollout)[0].advantages
    for row, unscored in enumerate(missing):
        assert (advantages[row] == 0).all() or not (unscored or row == 0)


def test_environments_that_weigh_parts_themselves_say_so():
    env = MathEnv(tiny_tokenizer(), num_problems=4, num_held_out=0)
    module = attached(GRPO(config(**BY_PART)))
    weights, parts = reward_parts(groups(module, env=env))
    assert parts.shape == (16, len(env.reward_weights)) == (16, len(weights))


@pytest.mark.parametrize(
    ("reward", "said"),
    [(any_letter, "this environment gives one: set reward=weighted"),
     (weighted(letter=any_letter), None)],
)  # fmt: skip
def test_a_reward_without_parts_is_refused_before_the_first_step(reward, said):
    c = config(**BY_PART, num_iterations=1)
    if said is None:
        run(c, data=data_of(c, reward))
        return
    with pytest.raises(ValueError, match=said):
        run(c, data=data_of(c, reward))


def test_a_reward_with_more_than_its_parts_is_refused():
    class Generous(TextGenerationEnv):
        def score(self, episodes):
            return [(reward + 1, metrics) for reward, metrics in super().score(episodes)]

    module = attached(GRPO(config(**BY_PART)))
    env = Generous(module.tokenizer, ["One", "Two"], reward_fn=weighted(letter=any_letter))
    with pytest.raises(ValueError, match=r"is not the weighted sum .* of its parts letter"):
        module.learn_from(groups(module, env=env))


@pytest.mark.parametrize(
    "changes",
    [{"baseline": "leave_one_out"}, {"baseline": "batch"}, {"scale_rewards": "none"},
     {"kl_in_reward": True, "beta": 0.1}, {"multi_objective_aggregation": "sum"}],
    ids=str,
)  # fmt: skip
def test_what_it_does_not_go_with_is_refused_by_name(changes):
    with pytest.raises(ValueError, match=rf"algo\.{next(iter(changes))}="):
        config(**BY_PART | changes)


def test_of_no_episode_there_are_no_parts():
    empty = SimpleNamespace(reward_weights={"a": 1.0}, trajectories=[])
    assert reward_parts(empty)[1].shape == (0, 1)
