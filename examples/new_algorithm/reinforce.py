"""REINFORCE (Williams 1992), with the mean of the iteration's rewards as its baseline.

Every token of a response is credited with how much better than average the whole response was.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.experience import Experience, Minibatch
from datamodules.types import Rollout
from rlmodules.algorithms.config import OnlineConfig
from rlmodules.algorithms.online import OnlineModule
from rlmodules.functional import masked_mean
from rlmodules.functional.policy_losses import masked_sum


@dataclass
class ReinforceConfig(OnlineConfig):
    """Settings of REINFORCE: those of every online algorithm, and"""

    advantage_clip: float | None = None
    """Advantages are clipped to ± this."""


class Reinforce(OnlineModule):
    """REINFORCE over any causal language model; arguments as of ``OnlineModule``."""

    config_class = ReinforceConfig
    has_reference = False  # no KL is of interest
    recompute = False  # the sampler's own log-probabilities will do: no ratio is taken

    def learn_from(self, rollout: Rollout) -> tuple[Experience, dict[str, float]]:
        """Rewards -> advantages."""
        evaluation, trajectories = rollout.evaluation, rollout.trajectories
        rewards = torch.tensor([t.total_reward for t in trajectories])
        intact = torch.tensor([not t.failed for t in trajectories])
        baseline = masked_mean(rewards, intact, reduce=self.sum_over_ranks)
        advantages = rewards - baseline
        if (limit := self.config.advantage_clip) is not None:
            advantages = advantages.clamp(-limit, limit)
        experience = Experience(
            sequences=evaluation.sequences,
            positions=evaluation.positions,
            mask=evaluation.mask,
            old_logprobs=evaluation.logprobs,
            advantages=advantages[:, None].expand_as(evaluation.logprobs),
        )
        return experience, {"rollout/baseline": baseline.item()}

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor:
        """``-sum logprob * advantage / num_actions`` of one minibatch."""
        tokens = batch.tokens
        scores = self.policy.score(tokens, temperature=self.config.temperature)
        gain = masked_sum(tokens.scatter(scores.logprobs) * batch.advantages, tokens.mask)
        loss = -gain / batch.num_actions
        self.train_metrics.add({"train/loss": loss.detach()})
        return loss

    def end_epoch(self) -> None:
        self.log_iteration(epochs=1)
