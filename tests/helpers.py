"""Small PPO runs on the tiny model, for the tests."""

import os
import signal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from datamodules import RolloutDataModule, TextGenerationEnv
from rlmodules import PPO, PPOConfig
from rlmodules.callbacks import RunReport

PROMPTS = ["One", "Two words", "A third prompt", "And four"]


def count_e(prompts, responses, metadata=None):
    """A reward that a byte model learns quickly: how often it writes an ``e``."""
    return [response.count("e") / 4 for response in responses]


def config(**changes) -> PPOConfig:
    settings = {
        "model_name": "random:tiny",
        "batch_size": 8,
        "mini_batch_size": 4,
        "ppo_epochs": 2,
        "max_new_tokens": 6,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "device": "cpu",
    }
    return PPOConfig(**settings | changes)


def data(c: PPOConfig, reward=count_e, **changes) -> RolloutDataModule:
    settings = {
        "prompts": PROMPTS,
        "eval_size": 0,
        "batch_size": c.batch_size,
        "mini_batch_size": c.mini_batch_size,
        "epochs": c.ppo_epochs,
        "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "seed": c.seed,
    }

    def env(tokenizer, prompts):
        return TextGenerationEnv(tokenizer, prompts, reward_fn=reward)

    return RolloutDataModule(env, **settings | changes)


def run(c: PPOConfig, module: PPO | None = None, tmp_path="unused", **changes):
    """Train; returns the module and the metrics of each iteration."""
    module = module or PPO(c)
    report = RunReport(tmp_path)
    report.on_train_end = lambda *_: None
    options = {
        "max_epochs": c.num_iterations,
        "accelerator": "cpu",
        "gradient_clip_val": c.max_grad_norm,
        "accumulate_grad_batches": c.gradient_accumulation_steps,
        "logger": False,
        "callbacks": [report, *changes.pop("callbacks", [])],
        "enable_checkpointing": True,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    datamodule = changes.pop("data", None) or data(c)
    L.Trainer(**options | changes).fit(module, datamodule)
    return module, report.history


def weights(module: PPO) -> torch.Tensor:
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.cat([p.detach().flatten() for p in trained])


def assert_same(left, right, path=""):
    """Equality to the last bit, through dicts and lists, times excepted."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            if not (isinstance(key, str) and key.startswith("time/")):
                assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    else:
        assert left == right or (left != left and right != right), f"{path}: {left} != {right}"


def assert_same_run(straight, resumed):
    assert_same(straight["state_dict"], resumed["state_dict"], "weights")
    assert_same(straight["optimizer_states"], resumed["optimizer_states"], "optimizer")
    history = [c["callbacks"]["RunReport"]["history"] for c in (straight, resumed)]
    assert_same(*history, "metrics")
    assert straight["global_step"] == resumed["global_step"]


class SignalAt(Callback):
    """Sends this process a signal at one batch of one iteration."""

    def __init__(self, iteration, batch, number=signal.SIGTERM):
        self.at, self.number = (iteration, batch), number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            os.kill(os.getpid(), self.number)
