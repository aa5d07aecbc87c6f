"""A metric that does not exist is left out, everywhere: metrics, CSV, report.json."""

import csv
import json
import math

import pytest
import torch
from grpo_helpers import config as grpo_config
from helpers import PROMPTS, config, data, run

from datamodules import RolloutDataModule, TextGenerationEnv
from rlmodules import GRPO, PPO, PPOConfig, PPOTrainer
from rlmodules.algorithms.means import Means
from rlmodules.callbacks.report import existing
from rlmodules.functional import (
    GRPO_LOSSES,
    adapt_kl_coefficient,
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy_bonus,
    grpo_loss,
    importance_sampling_loss,
    ppo_loss,
)

NAN = math.nan


def same(prompts, responses, metadata=None):
    return [0.5] * len(responses)


def test_the_readmes_own_snippet_returns_numbers_and_writes_json(tmp_path):
    c = PPOConfig("random:tiny", max_new_tokens=4, batch_size=4, mini_batch_size=2, device="cpu")
    trainer = PPOTrainer(c, reward_fn=same, output_dir=tmp_path, enable_progress_bar=False)
    metrics = trainer.train(["Write a poem.", "Explain."], num_iterations=2)
    assert all(math.isfinite(value) for values in metrics.values() for value in values)
    text = (tmp_path / "report.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    rows = list(csv.DictReader((tmp_path / "csv" / "metrics.csv").open()))
    assert rows and "nan" not in {value for row in rows for value in row.values()}


def test_explained_variance_is_left_out_while_returns_do_not_vary_and_comes_back():
    c = config(num_iterations=3, kl_penalty_coef=0.0, gamma=1.0, lam=1.0)
    calls = []

    def varied_in_the_second(prompts, responses, metadata=None):
        calls.append(len(responses))
        return list(range(len(responses))) if len(calls) == 2 else same(prompts, responses)

    _, history = run(c, data=data(c, varied_in_the_second))
    have = ["rollout/explained_variance" in row for row in history]
    assert have == [False, True, False]


EMPTY = {
    "mask_BA": torch.zeros(2, 3, dtype=torch.bool),
    "num_actions": 0.0,
}
LOSSES = {
    "clipped": (
        clipped_surrogate_loss,
        ("logprobs", "old_logprobs", "advantages"),
        {"clip_ratio": 0.2},
    ),
    "plain": (importance_sampling_loss, ("logprobs", "old_logprobs", "advantages"), {}),
    "value": (clipped_value_loss, ("values", "old_values", "returns"), {"value_clip": 0.2}),
    "entropy": (entropy_bonus, ("entropy",), {}),
    "ppo": (
        ppo_loss,
        ("logprobs", "old_logprobs", "advantages", "entropy", "values", "old_values", "returns"),
        {"clip_ratio": 0.2, "entropy_coef": 0.1},
    ),
    **{
        f"grpo_{kind}": (
            grpo_loss,
            ("logprobs", "old_logprobs", "advantages", "ref_logprobs"),
            {"loss_type": kind, "max_new_tokens": 3, "beta": 0.1, "epsilon_high": 2.0},
        )
        for kind in GRPO_LOSSES
    },
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_window_all_of_whose_episodes_failed_has_a_loss_of_0_and_no_gradient(name):
    loss_of, inputs, options = LOSSES[name]
    tensors = {f"{key}_BA": torch.randn(2, 3, requires_grad=True) for key in inputs}
    loss, _ = loss_of(**tensors, **EMPTY, **options)
    assert loss.item() == 0.0
    loss.backward()
    for tensor in tensors.values():
        assert tensor.grad is None or torch.equal(tensor.grad, torch.zeros(2, 3))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_step_all_of_whose_episodes_failed_has_no_metrics_and_stops_nothing(algorithm):
    def fails_for_one(prompts, responses, metadata=None):
        return [0.5 if "Two" not in prompt else 1 / 0 for prompt in prompts]

    sizes = {"batch_size": 8, "mini_batch_size": 1, "gradient_accumulation_steps": 1}
    c = config(**sizes, ppo_epochs=1) if algorithm == "ppo" else grpo_config(**sizes)
    group = {"num_generations": 4} if algorithm == "grpo" else {}
    episodes = RolloutDataModule(
        lambda tokenizer, prompts: TextGenerationEnv(
            tokenizer, prompts, reward_fn=fails_for_one, on_error="skip", timeout_s=9.0
        ),
        prompts=PROMPTS[:2],
        eval_size=0,
        epochs=1,
        **sizes,
        **group,
    )
    module = PPO(c) if algorithm == "ppo" else GRPO(c)
    passes = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: (
        passes.append(batch.tokens.mask.any().item()) or step(batch, batch_idx)
    )
    _, history = run(c, module, data=episodes)
    assert len(passes) == 16 and 0 < sum(passes) < 16
    assert [row["rollout/failed"] for row in history] == [0.5, 0.5]
    assert all(math.isfinite(value) for row in history for value in row.values())
    assert module.train_metrics.counts == {}
    assert history[0]["train/ratio"] == pytest.approx(1.0, abs=0.2)  # of those that there were


def test_a_mean_of_nothing_is_no_number():
    means = Means()
    means.add({"a": 2.0, "b": 0.0}, weight=1.0)
    means.add({"a": 4.0})
    means.sums["c"] = means.counts["c"] = 0.0  # only another process met it, with nothing in it
    computed = means.compute(lambda totals: totals)
    assert (computed["a"], computed["b"]) == (3.0, 0.0) and math.isnan(computed["c"])


def test_what_json_does_not_have_is_left_out_of_all_depths():
    report = {"a": NAN, "b": [{"c": math.inf, "d": 1.0}], "e": {"f": -math.inf, "g": "nan"}, "h": 3}
    assert existing(report) == {"b": [{"d": 1.0}], "e": {"g": "nan"}, "h": 3}


def test_the_kl_coefficient_stays_positive_whatever_the_batch():
    kept = {"target": 1.0, "horizon": 10.0}
    assert adapt_kl_coefficient(0.5, 0.0, num_sequences=49, **kept) == pytest.approx(0.5 * 0.02)
    for too_many in (50, 51, 1000):
        with pytest.raises(ValueError, match="kl_horizon=10"):
            adapt_kl_coefficient(0.5, 0.0, num_sequences=too_many, **kept)
    PPOConfig(batch_size=16, kl_horizon=4)
    with pytest.raises(ValueError, match=r"algo.kl_horizon=3 must be above 3.2, a fifth of"):
        PPOConfig(batch_size=16, kl_horizon=3)
