"""Small GRPO runs on the tiny model, for the tests."""

import helpers
import lightning as L
import torch

from datamodules import RolloutDataModule, TextGenerationEnv
from datamodules.rollouts.episodes import play
from datamodules.types import Evaluation, Rollout, Trajectory
from rlmodules import GRPO, GRPOConfig

PROMPTS = ["One", "Two words", "A third prompt", "And four", "Five of them now", "6"]


def config(**changes) -> GRPOConfig:
    """Two groups of four an iteration, learned from in one optimizer step."""
    settings = {
        "model_name": "random:tiny",
        "batch_size": 8,
        "mini_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_new_tokens": 6,
        "num_iterations": 2,
        "learning_rate": 1e-3,
        "device": "cpu",
    }
    return GRPOConfig(**settings | changes)


def any_letter(prompts, responses, metadata=None):
    """A reward that tells the texts of an untrained model apart."""
    return [sum(map(ord, response)) % 97 / 97 for response in responses]


def lower_case(prompts, responses, metadata=None):
    """A reward that a byte model learns quickly: the share of lower-case letters."""
    return [sum(map(str.islower, response)) / 6 for response in responses]


def half_dull(prompts, responses, metadata=None):
    """Some groups' rewards are all equal, so that there is something to resample."""
    rewards = any_letter(prompts, responses)
    return [0.5 if "o" in p else r for p, r in zip(prompts, rewards, strict=True)]


def data(c: GRPOConfig, reward=any_letter, env=None, **changes) -> RolloutDataModule:
    settings = {
        "eval_size": 0,
        "batch_size": c.batch_size,
        "mini_batch_size": c.mini_batch_size,
        "epochs": c.num_epochs,
        "gradient_accumulation_steps": c.gradient_accumulation_steps,
        "num_generations": c.num_generations,
        "max_resamples": c.max_resamples,
        "seed": c.seed,
    }
    if env is None:
        settings["prompts"] = PROMPTS

    def text(tokenizer, prompts):
        return TextGenerationEnv(tokenizer, prompts, reward_fn=reward)

    return RolloutDataModule(env or text, **settings | changes)


def run(c: GRPOConfig, module: GRPO | None = None, **changes):
    """Train; returns the module and the metrics of each iteration."""
    changes["data"] = changes.pop("data", None) or data(c)
    return helpers.run(c, module or GRPO(c), **changes)


def groups(module: GRPO, *, env=None, prompts=PROMPTS[:2], reward=any_letter, seed=1):
    """A rollout of one group a prompt (or starting state), outside of a Trainer's loop."""
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    env = env or TextGenerationEnv(module.tokenizer, prompts, reward_fn=reward)
    size = module.config.num_generations
    starts = [start for start in range(len(env)) for _ in range(size)]
    with torch.no_grad():
        return play(module, env, starts, [seed * 1000 + i for i in range(len(starts))])


def gradient(module: GRPO, minibatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient of all that is trained) of one minibatch."""
    module.zero_grad()
    loss = module.training_step(minibatch, 0)
    loss.backward()
    trained = [p for p in module.base_model.parameters() if p.requires_grad]
    return loss.detach(), torch.cat([p.grad.flatten() for p in trained])


def whole(experience):
    """All of an iteration's episodes as one minibatch."""
    rows = range(len(experience))
    return experience.minibatch(list(rows), float(experience.num_actions(rows)))


def attached(module):
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return module


def rollout_of(rewards, kl=0.0, drawn=0.0):
    """Episodes of two tokens; a reward of None does not apply.

    Args:
        kl: log-probability of each token under the policy; the reference's is 0.
        drawn: under what drew it.
    """
    shape = (len(rewards), 2)
    trajectories = [
        Trajectory([], [torch.tensor([1, 2])], [r or 0.0], [torch.full((2,), drawn)], True,
                   r or 0.0, unscored=r is None, finish_reason="eos")
        for r in rewards
    ]  # fmt: skip
    evaluation = Evaluation(
        [torch.tensor([5, 1, 2])] * len(rewards), [torch.tensor([1, 2])] * len(rewards),
        torch.ones(shape, dtype=torch.bool), torch.full(shape, kl), torch.zeros(shape),
        torch.zeros(shape),
    )  # fmt: skip
    return Rollout(trajectories, evaluation, {"rollout": 1.0, "evaluate": 1.0})
