"""GRPO over whole iterations: groups in minibatches, resampling, learning, the facade."""

import pytest
import torch
from grpo_helpers import (
    PROMPTS,
    any_letter,
    config,
    data,
    lower_case,
    run,
)
from helpers import assert_same, weights
from torch.testing import assert_close

from datamodules import TextGenerationEnv
from rlmodules import GRPO, GRPOTrainer, LoraConfig, ModelConfig
from rlmodules.models.embedded import tiny_tokenizer

CISPO = {"loss_type": "cispo", "epsilon_high": 5.0}

# ------------------------------------------------------- groups, minibatches, resampling


def test_the_episodes_of_a_group_share_their_prompt_in_each_minibatch():
    c = config(batch_size=16, mini_batch_size=4, num_epochs=3, num_iterations=1)
    module, seen = GRPO(c), []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: (
        seen.append(batch.tokens),
        step(batch, batch_idx),
    )[1]
    run(c, module)
    assert len(seen) == 12
    prompts = [
        {tuple(s[: int(p[0])].tolist()) for s, p in zip(t.sequences, t.positions, strict=True)}
        for t in seen
    ]
    assert all(len(some) == 1 for some in prompts)
    for epoch in range(3):  # each epoch goes over all four groups
        assert len(set().union(*prompts[4 * epoch : 4 * epoch + 4])) == 4


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"])
def test_one_step_is_the_same_however_its_minibatch_is_accumulated(loss_type):
    """One optimizer step over 8 episodes: as one minibatch, as 2, as 4, as 8 pieces."""
    results = []
    for accumulate in (1, 2, 4, 8):
        c = config(
            num_iterations=1,
            mini_batch_size=8 // accumulate,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=1e9,
            loss_type=loss_type,
            epsilon_high=5.0 if loss_type == "cispo" else None,
            importance_sampling_level="sequence" if loss_type == "luspo" else "token",
            beta=0.2,
        )
        module = GRPO(c)
        module.configure_optimizers = lambda m=module: torch.optim.SGD(
            [p for p in m.parameters() if p.requires_grad], lr=0.1
        )
        results.append(weights(run(c, module)[0]))
    for other in results[1:]:
        assert_close(other, results[0], rtol=0, atol=2e-6)
    assert not torch.equal(results[0], weights(GRPO(config())))


def dull_prompts(prompts, responses, metadata=None):
    """The first three prompts' rewards are always equal, the others' never."""
    rewards = any_letter(prompts, responses)
    return [0.5 if p in PROMPTS[:3] else r for p, r in zip(prompts, rewards, strict=True)]


def test_groups_of_equal_rewards_are_replaced_by_groups_of_other_starting_states():
    shares, resampled = {}, {}
    for max_resamples in (0, 8):
        c = config(num_iterations=4, max_resamples=max_resamples)
        _, history = run(c, data=data(c, dull_prompts))
        shares[max_resamples] = [row["rollout/equal_groups"] for row in history]
        resampled[max_resamples] = [row["rollout/resampled_groups"] for row in history]
    assert max(shares[0]) > 0 and set(resampled[0]) == {0.0}
    assert shares[8] == [0.0] * 4 and max(resampled[8]) > 0
    _, again = run(c, data=data(c, dull_prompts))
    assert_same(history, again)


def test_a_replacement_starts_where_no_group_of_the_iteration_started():
    """Of 6 starting states 3 always tell their responses apart, so 3 groups need no other."""
    c = config(batch_size=12, mini_batch_size=12, num_iterations=6, max_resamples=20)
    module, starts = GRPO(c), []
    experience = module.experience
    module.experience = lambda rollout: (starts.append(rollout.starts), experience(rollout))[1]
    run(c, module, data=data(c, dull_prompts))
    for some in starts:
        assert len(some) == 12
        assert len(set(some)) == 3, some


def test_if_nothing_tells_responses_apart_resampling_ends_and_no_gradient_is_left():
    c = config(num_iterations=1, max_resamples=2)
    module = GRPO(c)
    before = weights(module)
    equal = lambda prompts, responses, metadata=None: [0.5] * len(prompts)  # noqa: E731
    _, history = run(c, module, data=data(c, equal))
    assert history[0]["rollout/equal_groups"] == 1.0
    assert history[0]["rollout/resampled_groups"] == 4.0
    assert history[0]["train/grad_norm"] == 0.0
    assert torch.equal(weights(module), before)


def test_a_replacement_that_fails_as_a_whole_costs_its_episodes_alone():
    """The first group is fine, the second is dull, whatever comes then cannot be scored."""

    calls = []

    class Closing(TextGenerationEnv):
        def score(self, episodes):
            calls.append(len(episodes))
            if len(calls) > 1:
                raise ConnectionError("closed for today")
            rewards = any_letter([], [e.response for e in episodes])
            return [(r if i < 4 else 0.5, {}) for i, r in enumerate(rewards)]

    c = config(num_iterations=1, max_resamples=1)
    d = data(c)
    d.env = lambda tokenizer, prompts: Closing(tokenizer, prompts, on_error="skip")
    with pytest.warns(UserWarning, match="closed for today"):
        _, history = run(c, data=d)
    assert history[0]["rollout/equal_groups"] == 0.5
    assert history[0]["rollout/resampled_groups"] == 1.0


# ----------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 0},
        {"seed": 1},
        {"seed": 2},
        {"baseline": "leave_one_out", "scale_rewards": "none"},
        {"baseline": "batch", "scale_rewards": "batch", "num_generations": 1},
        {"importance_sampling_level": "sequence", "num_epochs": 2},
        {**CISPO, "num_epochs": 2},
    ],
    ids=["grpo 0", "grpo 1", "grpo 2", "rloo", "reinforce++", "gspo", "cispo"],
)
def test_it_and_its_relatives_learn(settings):
    sizes = {"num_iterations": 12, "batch_size": 32, "mini_batch_size": 32, "num_generations": 8}
    c = config(**sizes | {"learning_rate": 1e-2} | settings)
    _, history = run(c, data=data(c, lower_case))
    rewards = [row["rollout/reward"] for row in history]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3  # of 0.9 possible, from about 0.1


def test_lora_trains_adapters_and_switches_them_off_for_the_reference():
    c = config(num_iterations=3, learning_rate=1e-2, beta=0.01, num_epochs=2)
    module = GRPO(c, ModelConfig(name="random:tiny", lora=LoraConfig(r=4)))
    assert module.reference.model is None  # no second copy
    base = {k: p.clone() for k, p in module.base_model.named_parameters() if not p.requires_grad}
    _, history = run(c, module)
    assert history[0]["rollout/kl"] == 0.0  # the B matrices start at zero
    assert history[-1]["rollout/kl"] != 0.0
    for name, parameter in module.base_model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name])


def test_every_metric_a_grpo_user_watches_is_logged():
    _, history = run(config(num_iterations=1, beta=0.1, num_epochs=2))
    names = """
        rollout/reward rollout/reward_std rollout/kl rollout/response_length rollout/eos_fraction
        rollout/cut_mass rollout/failed rollout/equal_groups rollout/resampled_groups
        rollout/entropy train/loss train/ratio train/clip_fraction train/approx_kl train/kl
        train/grad_norm train/learning_rate time/rollout_tokens_per_s time/update_tokens_per_s
    """
    assert set(names.split()) <= set(history[0])


# -------------------------------------------------------------------- the facade


def trainer(tmp_path, **options):
    quiet = {"enable_progress_bar": False, "output_dir": tmp_path}
    return GRPOTrainer(config(num_iterations=1, eval_every=1), **quiet | options)


def test_the_trainer_learns_from_prompts_and_a_reward_function(tmp_path):
    history = trainer(tmp_path, reward_fn=any_letter).train(PROMPTS, eval_prompts=["Seven"])
    assert len(history["rollout/reward"]) == len(history["val/reward"]) == 1


def test_the_trainer_plays_an_environment_and_evaluates_on_what_it_holds_out(tmp_path):
    seen = []

    class Held(TextGenerationEnv):
        held_out = (1, 4)

        def reset(self, index=None):
            seen.append(index)
            return super().reset(index)

    env = Held(tiny_tokenizer(), PROMPTS, reward_fn=any_letter)
    history = trainer(tmp_path, env=env).train()
    assert len(history["val/reward"]) == 1
    assert seen[:6] == [0, 2, 3, 5, 1, 4]  # looked at beforehand
    assert not {1, 4} & {*seen[6:14]} and set(seen[14:]) == {1, 4}


def test_the_trainer_refuses_two_sources_of_rewards_or_of_prompts(tmp_path):
    env = TextGenerationEnv(tiny_tokenizer(), PROMPTS)
    with pytest.raises(ValueError, match=r"env.*or reward_fn"):
        trainer(tmp_path, env=env, reward_fn=any_letter)
    with pytest.raises(ValueError, match="prompts to train"):
        trainer(tmp_path, env=env).train(PROMPTS)
    with pytest.raises(ValueError, match="prompts to train"):
        trainer(tmp_path).train()
