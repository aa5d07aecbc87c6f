"""The façade for scripts: the contract's snippet, its results, the exported model."""

import pytest
import torch
from helpers import count_e
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlmodules import LoraConfig, ModelConfig, PPOConfig, PPOTrainer
from rlmodules.checks import device_options

QUICK = {
    "model_name": "random:tiny",
    "batch_size": 4,
    "mini_batch_size": 2,
    "ppo_epochs": 1,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
    "num_iterations": 3,
    "device": "cpu",
}
QUIET = {"enable_progress_bar": False, "logger": False}
PROMPTS = ["Write a poem about...", "Explain quantum..."]


def test_the_contracts_snippet_runs_and_returns_metric_lists(tokenizer, tmp_path):
    calls = []

    def my_reward_fn(prompts, responses, metadata=None):
        calls.append((list(prompts), list(responses)))
        rewards = []
        for response in responses:
            score = response.count("e") / 4
            rewards.append(score)
        return rewards

    config = PPOConfig(**QUICK)
    trainer = PPOTrainer(
        config=config,
        tokenizer=tokenizer,
        reward_fn=my_reward_fn,
        output_dir=tmp_path,
        **QUIET,
    )
    metrics = trainer.train(PROMPTS, num_iterations=2)
    assert {len(values) for values in metrics.values()} == {2}
    assert metrics["iteration"] == [1.0, 2.0]
    assert {"rollout/reward", "rollout/kl", "train/policy_loss"} <= set(metrics)
    assert len(calls) == 2  # one call of the reward an iteration, with all episodes
    assert sorted(calls[0][0]) == sorted(PROMPTS * 2)


def test_without_a_reward_longer_is_better(tmp_path):
    trainer = PPOTrainer(PPOConfig(**QUICK), output_dir=tmp_path, **QUIET)
    metrics = trainer.train(PROMPTS, num_iterations=1)
    assert 0 <= metrics["rollout/reward"][0] <= 0.06  # a hundredth for each of at most 6 words


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    def reward_curve(seed):
        config = PPOConfig(**QUICK | {"seed": seed, "temperature": 1.0})
        trainer = PPOTrainer(config, reward_fn=count_e, output_dir=tmp_path / str(seed), **QUIET)
        return trainer.train(PROMPTS)["train/policy_loss"]

    assert reward_curve(0) == reward_curve(0) != reward_curve(1)


def test_held_out_prompts_are_judged_every_eval_every_iterations(tmp_path):
    config = PPOConfig(**QUICK | {"eval_every": 2, "num_iterations": 4})
    trainer = PPOTrainer(config, output_dir=tmp_path, **QUIET)
    metrics = trainer.train(PROMPTS, eval_prompts=["A third"])
    assert len(metrics["val/reward"]) == 2
    assert len(metrics["rollout/reward"]) == 4


def test_save_every_counts_iterations(tmp_path):
    saved = []
    config = PPOConfig(**QUICK | {"save_every": 2, "num_iterations": 5})
    trainer = PPOTrainer(config, output_dir=tmp_path, **QUIET)
    trainer.module.on_save_checkpoint = lambda checkpoint: saved.append(
        trainer.module.current_epoch + 1
    )
    trainer.train(PROMPTS)
    assert saved[:2] == [2, 4]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.fixture
def local_model(model, tokenizer, tmp_path):
    """The tiny model as a folder in Hugging Face format."""
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_the_saved_model_loads_with_transformers(local_model, tmp_path, rank):
    config = PPOConfig(**QUICK | {"model_name": local_model})
    trainer = PPOTrainer(
        config,
        reward_fn=count_e,
        model_config=ModelConfig(name=local_model, dtype="float32", lora=LoraConfig(r=rank)),
        output_dir=tmp_path / "run",
        precision="32-true",
        **QUIET,
    )
    trainer.train(PROMPTS)
    trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out" / "adapter_config.json").exists() == (rank > 0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("What it says", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = trainer.module.base_model(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, ours, rtol=0, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(local_model, dtype=torch.float32)
        assert not torch.allclose(base(input_ids=ids).logits, ours, atol=1e-4)
    head = load_file(tmp_path / "out" / "value_head.safetensors")
    trained = trainer.module.policy.value_head.state_dict()
    assert all(torch.equal(head[name], trained[name].float()) for name in trained)


def test_devices_are_named_as_torch_names_them():
    assert device_options(None) == {"accelerator": "auto", "devices": "auto"}
    assert device_options("cpu") == {"accelerator": "cpu", "devices": 1}
    assert device_options("cuda:1") == {"accelerator": "gpu", "devices": [1]}
    with pytest.raises(ValueError, match=r"algo\.device='tpux'"):
        device_options("tpux")
