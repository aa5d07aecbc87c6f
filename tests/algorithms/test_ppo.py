"""PPO as a whole on the tiny model: what it computes, that it learns, what it is invariant to."""

from dataclasses import asdict, fields

import lightning as L
import pytest
import torch
from helpers import PROMPTS, config, count_e, data, run, weights

from datamodules import TextGenerationEnv
from datamodules.rollouts.episodes import play
from datamodules.types import Rollout
from rlmodules import PPO, AdaptiveKLController, LoraConfig, ModelConfig, PPOConfig
from rlmodules.algorithms.gradients import NonFiniteGradientError

SEED_DEFAULTS = {  # the public contract, field by field
    "model_name": "google/gemma-2-2b",
    "learning_rate": 1e-5,
    "batch_size": 16,
    "mini_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "ppo_epochs": 4,
    "gamma": 0.99,
    "lam": 0.95,
    "clip_ratio": 0.2,
    "value_clip": 0.2,
    "max_grad_norm": 1.0,
    "kl_penalty_coef": 0.01,
    "kl_target": 0.01,
    "kl_horizon": 10000,
    "entropy_coef": 0.01,
    "value_coef": 0.5,
    "max_new_tokens": 128,
    "temperature": 0.7,
    "top_p": 0.9,
    "num_iterations": 100,
    "save_every": 10,
    "eval_every": 5,
    "device": None,
}


def test_the_config_has_exactly_the_contracts_fields_and_defaults():
    ours = asdict(PPOConfig())
    assert {name: ours[name] for name in SEED_DEFAULTS} == SEED_DEFAULTS
    assert next(f.name for f in fields(PPOConfig)) == "model_name"


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 10},
        {"mini_batch_size": 3},
        {"gradient_accumulation_steps": 4},
        {"kl_estimator": "k4"},
        {"temperature": 0.0},
        {"gamma": 1.5},
        {"top_p": 0.0},
        {"clip_ratio": -0.1},
        {"kl_horizon": 0},
        {"early_stop_kl": 0.0},
        {"save_every": 0},
        {"reward_clip": -1.0},
    ],
)
def test_an_impossible_setting_is_refused_by_name(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"algo\..*{name}"):
        config(**wrong)


def test_different_model_names_are_refused():
    with pytest.raises(ValueError, match="differ"):
        PPO(config(model_name="other/model"), ModelConfig(name="random:tiny"))


def test_it_learns_while_the_reward_and_nothing_else_rises():
    c = config(num_iterations=25, batch_size=32, mini_batch_size=16, learning_rate=5e-3)
    c = PPOConfig(**asdict(c) | {"temperature": 1.0, "top_p": 1.0, "kl_penalty_coef": 0.0})
    _, history = run(c)
    first = sum(row["rollout/reward"] for row in history[:3]) / 3
    last = sum(row["rollout/reward"] for row in history[-3:]) / 3
    assert last > first + 0.5  # of 1.5 possible, from about 0.01


def test_the_kl_penalty_keeps_the_policy_near_the_reference():
    settings = {"num_iterations": 12, "batch_size": 32, "mini_batch_size": 16, "temperature": 1.0}
    settings |= {"top_p": 1.0, "learning_rate": 5e-3}
    kls = {}
    for coefficient in (0.0, 2.0):
        _, history = run(config(kl_penalty_coef=coefficient, kl_horizon=10**9, **settings))
        kls[coefficient] = history[-1]["rollout/kl"]
    assert kls[2.0] < 0.25 * kls[0.0]


def test_before_any_update_policy_and_reference_agree_and_ratios_are_one():
    _, history = run(config(num_iterations=1, ppo_epochs=1, batch_size=4))
    assert history[0]["rollout/kl"] == 0.0
    assert history[0]["train/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert history[0]["train/clip_fraction"] == 0.0


def test_every_metric_a_ppo_user_watches_is_logged():
    c = config(num_iterations=1)
    varied = lambda prompts, responses, metadata=None: [*range(len(prompts))]  # noqa: E731
    _, history = run(c, data=data(c, varied))  # there is a variance to explain
    names = """
        rollout/reward rollout/reward_std rollout/kl rollout/kl_penalty rollout/kl_coef
        rollout/value rollout/return rollout/response_length rollout/eos_fraction rollout/cut_mass
        rollout/explained_variance train/policy_loss train/value_loss train/entropy
        train/clip_fraction train/value_clip_fraction train/approx_kl train/grad_norm
        train/learning_rate time/rollout_tokens_per_s time/update_tokens_per_s
    """
    wanted = set(names.split())
    assert wanted <= set(history[0])
    assert 0 < history[0]["rollout/cut_mass"] < 1  # top_p is 0.9


def test_the_policy_does_not_move_while_the_critic_warms_up():
    c = config(num_iterations=2, value_warmup_iterations=2, value_learning_rate=1e-2)
    before = PPO(c)
    module, _ = run(c, data=data(c, lambda prompts, responses, metadata=None: [1.0] * len(prompts)))
    for new, old in zip(
        module.base_model.parameters(), before.base_model.parameters(), strict=True
    ):
        assert torch.equal(new, old)
    assert module.policy.value_head.output.bias.abs() > 0


def test_one_step_is_the_same_however_its_minibatch_is_accumulated():
    """One optimizer step over 8 episodes: as one minibatch, as 2, as 4, as 8 pieces."""
    results = []
    for accumulate in (1, 2, 4, 8):
        c = config(
            num_iterations=1,
            ppo_epochs=1,
            mini_batch_size=8 // accumulate,
            gradient_accumulation_steps=accumulate,
            max_grad_norm=1e9,
        )
        module = PPO(c)
        module.configure_optimizers = lambda m=module: torch.optim.SGD(
            [p for p in m.parameters() if p.requires_grad], lr=0.1
        )
        module.policy.value_head.output.weight.data.fill_(0.01)  # so that values reach the loss
        results.append(weights(run(c, module)[0]))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=2e-6)
    assert not torch.equal(results[0], weights(PPO(config())))


def trajectories_of(module, prompts, seeds, env=None):
    """Episodes sampled outside of a Trainer."""
    env = env or TextGenerationEnv(module.tokenizer, prompts, reward_fn=count_e)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer = trainer
    return play(module, env, range(len(prompts)), seeds)


def test_evaluation_does_not_depend_on_the_company_or_on_padding():
    module = PPO(config(max_new_tokens=12))
    rollout = trajectories_of(module, PROMPTS, [1, 2, 3, 4])
    together = rollout.evaluation
    for i, trajectory in enumerate(rollout.trajectories):
        alone = module.evaluate([trajectory])
        n = int(alone.mask.sum())
        for name in ("logprobs", "ref_logprobs", "values"):
            torch.testing.assert_close(
                getattr(together, name)[i, :n], getattr(alone, name)[0], rtol=0, atol=2e-6
            )
    order = [2, 0, 3, 1]
    shuffled = module.evaluate([rollout.trajectories[i] for i in order])
    torch.testing.assert_close(shuffled.logprobs, together.logprobs[order], rtol=0, atol=2e-6)


def test_evaluated_log_probabilities_are_those_the_sampler_saw():
    module = PPO(config(max_new_tokens=12, temperature=0.7))
    rollout = trajectories_of(module, PROMPTS, [1, 2, 3, 4])
    for i, trajectory in enumerate(rollout.trajectories):
        sampled = trajectory.logprobs[0]
        evaluated = rollout.evaluation.logprobs[i, : len(sampled)]
        torch.testing.assert_close(evaluated, sampled, rtol=0, atol=1e-4)


def test_the_reward_lands_on_the_last_token_and_the_kl_on_each():
    """With gamma = lam = 1 and a zero critic, returns are rewards-to-go, counted by hand."""
    c = config(gamma=1.0, lam=1.0, whiten_advantages=False, kl_penalty_coef=0.5)
    module = PPO(c)
    rollout = trajectories_of(module, PROMPTS, [1, 2, 3, 4])
    seen = rollout.evaluation
    object.__setattr__(seen, "ref_logprobs", seen.logprobs - 0.1 * seen.mask)  # a KL of 0.1 each
    for i, trajectory in enumerate(rollout.trajectories):
        trajectory.rewards[-1] = trajectory.total_reward = float(i)
    experience = module.experience(rollout)
    for i, length in enumerate(seen.mask.sum(1).tolist()):
        to_go = torch.arange(length, 0, -1)
        expected = i - 0.5 * 0.1 * to_go
        torch.testing.assert_close(experience.returns[i, :length], expected, rtol=0, atol=1e-5)
        assert experience.returns[i, length:].abs().sum() == 0


def test_reward_clip_and_the_missing_eos_penalty_change_the_return_not_the_metric():
    c = config(gamma=1.0, lam=1.0, whiten_advantages=False, kl_penalty_coef=0.0)
    c = PPOConfig(**asdict(c) | {"reward_clip": 2.0, "missing_eos_penalty": 0.5})
    module = PPO(c)
    rollout = trajectories_of(module, PROMPTS, [1, 2, 3, 4])
    for trajectory, reason in zip(
        rollout.trajectories, ["length", "eos", "stop", "length"], strict=True
    ):
        trajectory.rewards[-1] = trajectory.total_reward = 5.0
        trajectory.finish_reason = reason
    returns = module.experience(rollout).returns
    assert returns[:, 0].tolist() == [1.5, 2.0, 2.0, 1.5]
    assert module.rollout_metrics["rollout/reward"] == 5.0


def test_the_kl_controller_is_fed_once_an_iteration_and_survives_the_state_dict():
    c = config(num_iterations=2, kl_target=1.0, kl_horizon=16, kl_penalty_coef=0.1)
    module, history = run(c)
    # KL is far below 1 nat: the full error of -0.2, on 8 of 16 episodes, twice: x 0.9 x 0.9.
    assert module.kl_controller.value == pytest.approx(0.1 * 0.9 * 0.9, rel=1e-6)
    assert history[1]["rollout/kl_coef"] == pytest.approx(0.09, rel=1e-6)
    other = AdaptiveKLController(0.5, 1.0, 16)
    other.load_state_dict(module.kl_controller.state_dict())
    assert other.value == module.kl_controller.value


def test_a_kl_early_stop_skips_the_rest_of_the_iteration_and_no_more():
    tight = config(early_stop_kl=1e-9, ppo_epochs=4, num_iterations=2)
    module, history = run(tight)
    assert [row["train/stopped_early"] for row in history] == [1.0, 1.0]
    loose, _ = run(config(early_stop_kl=1e9, ppo_epochs=4, num_iterations=2))
    moved = (weights(module) - weights(PPO(tight))).norm()
    assert 0 < moved < 0.7 * (weights(loose) - weights(PPO(tight))).norm()


def test_lora_trains_adapters_and_switches_them_off_for_the_reference():
    model_config = ModelConfig(name="random:tiny", lora=LoraConfig(r=4))
    c = config(num_iterations=3, learning_rate=1e-2)
    module = PPO(c, model_config)
    assert not list(module.reference.parameters())  # no second copy
    base = {k: p.clone() for k, p in module.base_model.named_parameters() if not p.requires_grad}
    _, history = run(c, module)
    assert history[0]["rollout/kl"] == 0.0  # the B matrices start at zero
    assert history[-1]["rollout/kl"] != 0.0
    for name, parameter in module.base_model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name])


def test_a_non_finite_gradient_stops_the_run_before_the_step():
    module = PPO(config(num_iterations=1))
    before = weights(module)
    original = module.training_step
    module.training_step = lambda batch, batch_idx: original(batch, batch_idx) * float("nan")
    with pytest.raises(NonFiniteGradientError, match="gradient norm is nan"):
        run(module.config, module)
    assert torch.equal(weights(module), before)


def test_rewards_are_scored_while_the_policy_evaluates_itself():
    """A reward that waits for the evaluation to begin only returns if the two run side by side."""
    import threading

    began = threading.Event()
    module = PPO(config(num_iterations=1, batch_size=4))
    evaluate = module.evaluate
    module.evaluate = lambda trajectories: (began.set(), evaluate(trajectories))[1]

    def patient(prompts, responses, metadata=None):
        assert began.wait(20), "the evaluation only began after scoring"
        return [0.0] * len(responses)

    run(module.config, module, data=data(module.config, patient))


def test_held_out_prompts_are_judged_on_the_same_texts_every_time():
    c = config(num_iterations=2, learning_rate=1e-12)
    d = data(c, eval_prompts=["Five", "Six and more"], eval_size=2)
    _, history = run(c, data=d)
    first, second = history
    assert first["val/reward"] == second["val/reward"]
    assert {"val/kl", "val/distinct_bigrams", "val/response_length"} <= set(first)


def test_an_environment_made_for_another_temperature_is_refused():
    c = config()

    def env(tokenizer, prompts):
        return TextGenerationEnv(tokenizer, prompts, temperature=0.3)

    d = data(c)
    d.env = env
    with pytest.raises(ValueError, match=r"env\.temperature=0\.3"):
        run(c, data=d)


def test_a_response_that_may_not_fit_the_environment_is_refused_not_cut():
    c = config(max_new_tokens=500)

    def env(tokenizer, prompts):
        return TextGenerationEnv(tokenizer, prompts, max_length=64)

    d = data(c)
    d.env = env
    with pytest.raises(ValueError, match=r"no room for .* within env\.max_length=64"):
        run(c, data=d)


def test_an_empty_rollout_part_does_not_disturb_validation():
    module = PPO(config())
    assert module.validation_step(Rollout.empty(), 0) == []


def test_in_pure_bf16_everything_but_the_weights_stays_float32():
    c = config(num_iterations=2)
    module = PPO(c, ModelConfig(name="random:tiny", dtype="bfloat16"))
    seen = []
    experience = module.experience
    module.experience = lambda rollout: seen.append(experience(rollout)) or seen[-1]
    _, history = run(c, module, precision="bf16-true")
    assert next(module.base_model.parameters()).dtype == torch.bfloat16
    for name in ("old_logprobs", "advantages", "values", "returns"):
        assert getattr(seen[0], name).dtype == torch.float32
    assert history[0]["train/ratio"] == pytest.approx(1, abs=0.2)


def test_the_former_name_of_the_early_stop_is_taken_with_a_warning():
    with pytest.warns(FutureWarning, match="early_stop_kl"):
        former = config(target_kl=0.5)
    assert (former.early_stop_kl, former.target_kl) == (0.5, None)
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="set one"):
        config(target_kl=0.5, early_stop_kl=0.1)
