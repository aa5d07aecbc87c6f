"""The scripts in ``examples/`` do what they say, on the tiny model."""

import copy
import importlib.util
from functools import partial
from pathlib import Path

import torch

from rlmodules.forward_backward import AsyncTrainingClient
from rlmodules.models.embedded import tiny_model

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lower_case(prompts, responses):
    """The share of lower-case letters: a byte model learns it quickly."""
    return [sum(map(str.islower, response)) / 6 for response in responses]


def test_the_ppo_loop_learns():
    model, tokenizer = tiny_model()
    torch.manual_seed(0)
    with AsyncTrainingClient(
        model,
        copy.deepcopy(model),
        "cpu",
        tokenizer=tokenizer,
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
    ) as client:
        history = example("ppo_loop").ppo(
            client, ["One", "Two"], reward_fn=lower_case, iterations=12, max_tokens=6
        )
    assert sum(history[-3:]) / 3 > sum(history[:2]) / 2 + 0.3
