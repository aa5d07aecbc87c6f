"""GRPO as a whole on the tiny model: what it computes, that it learns, what it is invariant to."""

import math
import threading
from functools import partial

import pytest
import torch
from grpo_helpers import (
    PROMPTS,
    any_letter,
    config,
    data,
    gradient,
    groups,
    lower_case,
    run,
    whole,
)
from torch.testing import assert_close

from datamodules import Environment, Observation, StepResult, TextGenerationEnv
from rlmodules import GRPO
from rlmodules.algorithms import evaluation
from rlmodules.models import backbone

CISPO = {"loss_type": "cispo", "epsilon_high": 5.0}


# ----------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 12},
        {"mini_batch_size": 3},
        {"mini_batch_size": 0},
        {"gradient_accumulation_steps": 3},
        {"num_generations": 3},
        {"num_generations": 0},
        {"num_generations": 1},
        {"loss_type": "ppo"},
        {"importance_sampling_level": "word"},
        {"scale_rewards": "std"},
        {"baseline": "critic"},
        {"epsilon": 0.0},
        {"epsilon_high": -0.1},
        {"beta": -0.1},
        {"max_resamples": -1},
        {"num_epochs": 0},
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"save_every": 0},
        {"kl_in_reward": True},
    ],
    ids=str,
)
def test_an_impossible_setting_is_refused_by_name(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"algo\..*{name}"):
        config(**wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "luspo"}, r"luspo.*set algo\.importance_sampling_level=sequence"),
        ({"delta": 1.2}, r"delta=1\.2 must be above 1 \+ epsilon_high = 1\.2"),
        ({"delta": 3.0} | CISPO, "delta=3 has no effect on algo.loss_type=cispo"),
        ({"delta": 3.0, "loss_type": "sapo"}, "delta=3 has no effect"),
        ({"epsilon": 0.1, "loss_type": "sapo"}, "epsilon=0.1 has no effect"),
        ({"epsilon_high": 0.3, "loss_type": "sapo"}, "epsilon_high=0.3 has no effect"),
        ({"sapo_temperature_neg": 2.0}, "sapo_temperature_neg=2 has no effect"),
        ({"loss_type": "sapo", "sapo_temperature_pos": 0.0}, "sapo_temperature_pos=0.0 must be"),
    ],
)
def test_options_that_a_loss_does_not_read_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize("high", [None, 0.2])
def test_cispo_needs_a_largest_ratio_and_says_what_to_set(high):
    with pytest.raises(ValueError, match=r"cispo.*algo\.epsilon_high.*1 or more"):
        config(loss_type="cispo", epsilon_high=high)


@pytest.mark.parametrize("baseline", ["leave_one_out", "group"])
def test_a_group_of_one_cannot_be_compared_with_itself(baseline):
    """Its only episode would have advantage 0 for ever."""
    with pytest.raises(ValueError, match=r"algo\.num_generations=1.*algo\.baseline"):
        config(num_generations=1, baseline=baseline, scale_rewards="none")
    config(num_generations=1, baseline="batch", scale_rewards="batch")


# ---------------------------------------------------------- what is computed from what


class Relay(Environment):
    """Start i takes i + 1 turns; each but the last is answered by a text of the environment's."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __len__(self):
        return 3

    def reset(self, index=None):
        self.index, self.turn = index, 0
        self.context = torch.tensor(self.tokenizer(PROMPTS[index])["input_ids"])
        return self.observation()

    def observation(self):
        ids = self.context
        return Observation(ids, torch.ones_like(ids), PROMPTS[self.index])

    def respond(self, tokens):
        self.turn += 1
        answer = torch.tensor(self.tokenizer("And?")["input_ids"])
        self.context = torch.cat([self.context, tokens, answer])
        done = self.turn > self.index
        return StepResult(0.0, done, None if done else self.observation())

    def score(self, episodes):
        return [(float(e.context.sum() % 17), {}) for e in episodes]


@pytest.mark.parametrize("turns", ["one turn", "several turns"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"loss_type": "grpo", "beta": 0.3}, {"importance_sampling_level": "sequence"}, CISPO],
    ids=str,
)
def test_with_shared_prompts_loss_and_gradient_are_those_of_padded_rows(turns, settings):
    module = GRPO(config(max_new_tokens=8, num_epochs=2, temperature=1.5, **settings))
    assert module.policy.packs
    env = Relay(module.tokenizer) if turns == "several turns" else None
    rollout = groups(module, env=env, prompts=PROMPTS)
    experience = module.experience(rollout)
    with torch.no_grad():  # off-policy, so that every part of the loss has a gradient
        for p in module.base_model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    packed = gradient(module, whole(experience))
    module.policy.can_pack = False
    backbone(module.base_model).set_attn_implementation("eager")
    padded = gradient(module, whole(experience))
    assert_close(packed, padded, rtol=1e-4, atol=1e-5)
    assert padded[1].norm() > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_evaluation_does_not_depend_on_company_packing_or_order(beta):
    module = GRPO(config(max_new_tokens=8, num_epochs=2, beta=beta))
    played = groups(module, env=Relay(module.tokenizer)).trajectories
    together = module.evaluate(played)
    names = ["logprobs", "ref_logprobs"] if beta else ["logprobs"]
    for i, trajectory in enumerate(played):
        alone = module.evaluate([trajectory])
        n = int(alone.mask.sum())
        for name in names:
            ours, theirs = getattr(together, name)[i, :n], getattr(alone, name)[0]
            assert_close(ours, theirs, rtol=0, atol=1e-5)
    order = [7, 2, 11, 0, 5, 9, 1, 3, 10, 4, 8, 6]
    shuffled = module.evaluate([played[i] for i in order])
    assert_close(shuffled.logprobs, together.logprobs[order], rtol=0, atol=1e-5)


def test_of_several_turns_the_log_probabilities_are_those_the_sampler_saw():
    module = GRPO(config(max_new_tokens=8, num_epochs=2, temperature=0.7))
    rollout = groups(module, env=Relay(module.tokenizer))
    for i, trajectory in enumerate(rollout.trajectories):
        sampled = torch.cat(trajectory.logprobs)
        assert len(trajectory.actions) == i // 4 + 1
        evaluated = rollout.evaluation.logprobs[i, : len(sampled)]
        assert_close(evaluated, sampled, rtol=0, atol=1e-4)


def test_equal_responses_of_a_group_can_be_packed():
    """The whole sequence is shared then; the rests are empty."""
    module = GRPO(config(num_epochs=2))
    trajectory = groups(module).trajectories[0]
    twins = module.evaluate([trajectory] * 4)
    alone = module.evaluate([trajectory])
    assert_close(twins.logprobs, alone.logprobs.expand(4, -1), rtol=0, atol=1e-5)


def test_a_minibatch_without_any_action_is_0_with_a_gradient_of_0():
    module = GRPO(config(mask_truncated_completions=True, num_epochs=2, beta=0.1))
    rollout = groups(module)
    for trajectory in rollout.trajectories:
        trajectory.finish_reason = "length"
    experience = module.experience(rollout)
    loss, flat = gradient(module, experience.minibatch([*range(8)], 0.0))
    assert loss.item() == 0 and flat.abs().max() == 0


# ---------------------------------------------------------------- ratios, old and new


@pytest.mark.parametrize("settings", [{}, {"mini_batch_size": 2, "gradient_accumulation_steps": 4}])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_with_one_update_an_iteration_the_ratio_is_exactly_1(settings, level):
    _, history = run(config(importance_sampling_level=level, **settings))
    for row in history:
        assert row["train/ratio"] == 1.0 and row["train/approx_kl"] == 0.0
        assert row["train/clip_fraction"] == 0.0


@pytest.mark.parametrize("settings", [{"num_epochs": 2}, {"mini_batch_size": 4}], ids=str)
def test_with_several_updates_ratios_are_against_the_policy_that_sampled(settings):
    module = GRPO(config(num_iterations=1, learning_rate=1e-2, **settings))
    batches, step = [], module.training_step
    module.training_step = lambda batch, batch_idx: (
        batches.append(batch),
        step(batch, batch_idx),
    )[1]
    rollouts, experience = [], module.experience
    module.experience = lambda rollout: (rollouts.append(rollout), experience(rollout))[1]
    _, history = run(module.config, module)
    assert history[0]["train/approx_kl"] > 0
    sampled = {
        tuple(torch.cat(t.actions).tolist()): torch.cat(t.logprobs)
        for t in rollouts[0].trajectories
    }
    assert len(batches) == 2
    for batch in batches:  # of the second update too
        actions = batch.tokens.actions.split(batch.tokens.mask.sum(1).tolist())
        for i, tokens in enumerate(actions):
            old = sampled[tuple(tokens.tolist())]
            assert_close(batch.old_logprobs[i, : len(old)], old, rtol=0, atol=1e-4)


def test_without_beta_there_is_no_reference_and_no_kl():
    module, history = run(config(beta=0.0))
    assert module.reference is None
    assert not any("kl" in name and name != "train/approx_kl" for name in history[0])


def test_with_beta_the_kl_starts_at_0_and_holds_the_policy_back():
    kls = {}
    for beta in (1e-6, 5.0):
        c = config(beta=beta, num_iterations=8, learning_rate=1e-2, num_epochs=2)
        _, history = run(c, data=data(c, lower_case))
        assert history[0]["rollout/kl"] == pytest.approx(0.0, abs=1e-6)
        kls[beta] = history[-1]["rollout/kl"]
    assert kls[5.0] < 0.3 * kls[1e-6]


# ------------------------------------------------------------------- advantages


def with_rewards(rollout, rewards):
    for trajectory, reward in zip(rollout.trajectories, rewards, strict=True):
        trajectory.rewards[-1] = trajectory.total_reward = float(reward)
    return rollout


def test_every_token_of_a_response_has_its_advantage_within_its_group():
    module = GRPO(config(scale_rewards="none", num_epochs=2))
    rollout = with_rewards(groups(module), [1, 2, 3, 6, 0, 0, 4, 4])
    experience = module.experience(rollout)
    for row, expected in enumerate([-2, -1, 0, 3, -2, -2, 2, 2]):
        assert (experience.advantages[row] == expected).all()
    assert module.rollout_metrics["rollout/equal_groups"] == 0.0
    module.experience(with_rewards(rollout, [1, 2, 3, 6, 4, 4, 4, 4]))
    assert module.rollout_metrics["rollout/equal_groups"] == 0.5


def test_the_kl_can_be_taken_off_the_reward_instead_of_the_loss():
    module = GRPO(config(beta=0.5, kl_in_reward=True, scale_rewards="none", num_epochs=2))
    rollout = with_rewards(groups(module), [1, 2, 3, 6, 0, 0, 4, 4])
    seen = rollout.evaluation
    gap = torch.arange(1, 9)[:, None] / 10  # a KL of 0.1 a token in row 0, 0.8 in row 7
    object.__setattr__(seen, "ref_logprobs", seen.logprobs - gap)
    experience = module.experience(rollout)
    assert experience.ref_logprobs is None
    rewards = torch.tensor([1.0, 2, 3, 6, 0, 0, 4, 4]) - 0.5 * gap[:, 0] * seen.mask.sum(1)
    expected = (rewards.view(2, 4) - rewards.view(2, 4).mean(1, keepdim=True)).flatten()
    assert_close(experience.advantages[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert module.rollout_metrics["rollout/reward"] == pytest.approx(20 / 8)  # as it was given


@pytest.mark.parametrize("masks", [True, False])
def test_nothing_is_learned_from_truncated_responses_if_so_asked(masks):
    module = GRPO(config(mask_truncated_completions=masks, scale_rewards="none", num_epochs=2))
    rollout = with_rewards(groups(module), [1, 2, 3, 6, 0, 0, 4, 4])
    reasons = ["length", "eos", "stop", "eos"] * 2
    for trajectory, reason in zip(rollout.trajectories, reasons, strict=True):
        trajectory.finish_reason = reason
    lengths = rollout.evaluation.mask.sum(1)
    experience = module.experience(rollout)
    expected = [0 if masks and r == "length" else n for r, n in zip(reasons, lengths, strict=True)]
    assert experience.mask.sum(1).tolist() == expected
    assert [len(p) for p in experience.positions] == expected
    assert experience.advantages[:, 0].tolist() == [-2, -1, 0, 3, -2, -2, 2, 2]


class OneFails(TextGenerationEnv):
    """An episode's reward is its number's of ``fates``, where None raises.

    ``numbers`` tells an episode's number by its response.
    """

    fates: tuple = ()

    def respond(self, tokens):
        self.number = self.numbers[tuple(tokens.tolist())]
        return super().respond(tokens)

    def score(self, episodes):
        if len(episodes) > 1:
            raise ConnectionError("one of you")
        number = episodes[0].number
        if self.fates[number] is None:
            raise ConnectionError("closed")
        return [(self.fates[number], {})]


def test_a_failed_episode_changes_nothing_for_the_others():
    """Same advantages, loss and gradient as a group of 3 that never had it."""
    settings = {"num_epochs": 2, "batch_size": 4, "mini_batch_size": 4}
    module = GRPO(config(**settings))
    clean = groups(module, prompts=PROMPTS[:1])
    numbers = {tuple(torch.cat(t.actions).tolist()): i for i, t in enumerate(clean.trajectories)}
    assert len(numbers) == 4
    env = OneFails(module.tokenizer, PROMPTS[:1], on_error="skip")
    env.fates, env.numbers = (1.0, 2.0, None, 6.0), numbers
    with pytest.warns(UserWarning, match="closed"):
        rollout = groups(module, env=env)
    failed = module.experience(rollout)
    assert module.rollout_metrics["rollout/failed"] == 0.25
    assert module.rollout_metrics["rollout/reward"] == 3.0
    mine = gradient(module, whole(failed))

    three = GRPO(config(num_generations=3, num_epochs=2, batch_size=3, mini_batch_size=3))
    three.trainer = module.trainer
    kept = [0, 1, 3]
    clean.trajectories = [clean.trajectories[i] for i in kept]
    clean.evaluation = three.evaluate(clean.trajectories)
    without = three.experience(with_rewards(clean, [1, 2, 6]))
    assert_close(failed.advantages[kept], without.advantages, rtol=0, atol=1e-6)
    assert_close(mine, gradient(three, whole(without)), rtol=0, atol=1e-6)


class NoSecondPrompt(TextGenerationEnv):
    def reset(self, index=None):
        if index == 1:
            raise ConnectionError("no such scene")
        return super().reset(index)


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"num_epochs": 2}, {"max_resamples": 1}])
@pytest.mark.filterwarnings("ignore:an episode of NoSecondPrompt failed")
def test_a_starting_state_that_cannot_be_reached_costs_its_group_alone(settings):
    c = config(**settings)
    make = partial(NoSecondPrompt, reward_fn=any_letter, on_error="skip")
    two = data(c, env=make, prompts=PROMPTS[:2], eval_prompts=PROMPTS[:2], eval_size=2)
    module, rows = run(c, data=two)
    assert [row["rollout/failed"] for row in rows] == [0.5, 0.5]
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert module.trainer.callback_metrics["val/reward"].isfinite()


def test_a_run_of_so_many_steps_is_evaluated_after_them():
    c = config(num_iterations=5, batch_size=16)  # two optimizer steps an iteration
    held_out = data(c, eval_prompts=PROMPTS[:2], eval_size=2)
    options = {"max_steps": 3, "check_val_every_n_epoch": 10}
    module, _ = run(c, data=held_out, **options)
    assert module.trainer.global_step == 3
    assert module.trainer.callback_metrics["val/reward"].isfinite()
    assert module.trainer.check_val_every_n_epoch == 10


def test_an_episode_may_fail_in_scoring_while_the_policy_is_being_evaluated(monkeypatch):
    """Whenever the failure comes: here between the evaluation's first look and its second."""
    looked, scored = threading.Event(), threading.Event()

    class Slow(OneFails):
        def score(self, episodes):
            assert looked.wait(20)
            try:
                return super().score(episodes)
            finally:
                if len(episodes) == 1 and episodes[0].number == 3:
                    scored.set()

    module = GRPO(config(batch_size=4, mini_batch_size=4))  # takes the sampler's probabilities
    clean = groups(module, prompts=PROMPTS[:1])
    env = Slow(module.tokenizer, PROMPTS[:1], on_error="skip")
    env.fates = (1.0, 2.0, None, 6.0)
    env.numbers = {
        tuple(torch.cat(t.actions).tolist()): i for i, t in enumerate(clean.trajectories)
    }
    look = evaluation.action_mask

    def slowly(positions):
        looked.set()
        assert scored.wait(20)
        return look(positions)

    monkeypatch.setattr(evaluation, "action_mask", slowly)
    with pytest.warns(UserWarning, match="closed"):
        rollout = groups(module, env=env)
    assert (rollout.evaluation.mask.sum(1) > 0).tolist() == [True, True, False, True]
