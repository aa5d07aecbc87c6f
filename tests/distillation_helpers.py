"""A teacher of another size than the tiny model, and small runs of distillation."""

from functools import cache

import helpers
import torch
from transformers import LlamaForCausalLM

from datamodules import RolloutDataModule, TextGenerationEnv
from rlmodules import Distillation, DistillationConfig
from rlmodules.models.embedded import tiny_config, tiny_tokenizer

PROMPTS = ["One", "Two words", "A third prompt", "And four", "Five of them", "6"]
SAYS = " yes, of course"


def config(**changes) -> DistillationConfig:
    settings = {
        "model_name": "random:tiny",
        "batch_size": 8,
        "mini_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_new_tokens": 6,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "device": "cpu",
    }
    return DistillationConfig(**settings | changes)


@cache
def _weights(trained: bool) -> dict:
    model = fresh()
    if trained:  # to say one thing, whatever it is asked
        tokenizer, optimizer = tiny_tokenizer(), torch.optim.AdamW(model.parameters(), 3e-3)
        texts = [tokenizer(prompt + SAYS, return_tensors="pt").input_ids for prompt in PROMPTS]
        for step in range(60):
            ids = texts[step % len(texts)]
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def fresh() -> LlamaForCausalLM:
    config = tiny_config()
    config.hidden_size, config.num_hidden_layers, config.head_dim = 96, 3, 24
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return LlamaForCausalLM(config)


def teacher(trained: bool = False) -> LlamaForCausalLM:
    """Wider and deeper than the tiny model, over the same bytes."""
    model = fresh()
    model.load_state_dict(_weights(trained))
    return model


def module(c: DistillationConfig | None = None, **given) -> Distillation:
    given.setdefault("teacher", teacher())
    return Distillation(c or config(), **given)


def no_reward(prompts, responses, metadata=None):
    return [0.0] * len(responses)


def data(c: DistillationConfig, **changes) -> RolloutDataModule:
    settings = {"prompts": PROMPTS, "eval_size": 0, "batch_size": c.batch_size, "seed": c.seed,
                "mini_batch_size": c.mini_batch_size, "epochs": c.num_epochs,
                "gradient_accumulation_steps": c.gradient_accumulation_steps}  # fmt: skip

    def env(tokenizer, prompts):
        return TextGenerationEnv(tokenizer, prompts, reward_fn=no_reward)

    return RolloutDataModule(env, **settings | changes)


def run(c: DistillationConfig, made: Distillation | None = None, **changes):
    """Train; returns the module and the metrics of each iteration."""
    changes["data"] = changes.pop("data", None) or data(c)
    return helpers.run(c, made or module(c), **changes)
