"""Episodes on the card that is none (``card_helpers``)."""

import grpo_helpers
import helpers
import torch
from card_helpers import OnCard

from datamodules import TextGenerationEnv
from datamodules.rollouts.episodes import play


def rollout(module):
    """Episodes of a few prompts, scored and evaluated."""
    env = TextGenerationEnv(module.tokenizer, helpers.PROMPTS, reward_fn=grpo_helpers.any_letter)
    starts = [start for start in range(2) for _ in range(4)]
    with torch.no_grad():
        return play(module, env, starts, list(range(8)))


def minibatch(module):
    experience = module.experience(rollout(module))
    assert not any(isinstance(x, OnCard) for x in vars(experience).values())
    rows = list(range(len(experience)))
    return experience.minibatch(rows, float(experience.num_actions(rows))).to("cuda:0")
