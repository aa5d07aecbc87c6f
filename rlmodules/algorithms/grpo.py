"""Group Relative Policy Optimization (Shao et al. 2024, arXiv:2402.03300), and its relatives.

Several responses are sampled to each prompt; how much better a response is than its group is the
advantage of all its tokens, so no critic is needed. RLOO and REINFORCE++ are settings
(``conf/algo/rloo.yaml``, ``reinforce_plus_plus.yaml``): another baseline, another scale, the KL as
a part of the reward. We deviate from the paper in two places: without several updates an iteration
the old log-probabilities are the new ones, so that the ratio is exactly 1; and a sequence's KL in
the reward is one sum, where REINFORCE++ discounts it token by token.

An episode that no reward applies to (None) has no say in its group's mean and deviation, and the
advantage 0, as in TRL: its tokens count in averages, and its KL in the loss (``beta``) still holds
the policy to the reference; a KL in the reward goes with the reward that it has not.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from datamodules.experience import Experience, Minibatch
from datamodules.types import Rollout
from rlmodules.algorithms.config import OnlineConfig
from rlmodules.algorithms.online import OnlineModule
from rlmodules.algorithms.reward_parts import reward_parts
from rlmodules.checks import require, require_known
from rlmodules.functional import (
    BASELINES,
    GRPO_LOSSES,
    LEVELS,
    READ_DELTA,
    SCALES,
    decoupled_advantages,
    group_advantages,
    grpo_loss,
    masked_mean,
)

AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")


@dataclass
class GRPOConfig(OnlineConfig):
    """Settings of GRPO; the Python API and the schema of ``conf/algo/grpo.yaml`` alike.

    Whole groups in a minibatch are the fastest: ``mini_batch_size`` a multiple of
    ``num_generations``.
    """

    learning_rate: float = 1e-6
    batch_size: int = 64
    mini_batch_size: int = 16
    gradient_accumulation_steps: int = 4
    max_new_tokens: int = 256
    eval_every: int = 10

    num_generations: int = 8
    """Episodes of each prompt: the size of a group."""
    num_epochs: int = 1
    """Passes over each iteration's episodes (mu in the paper, ``num_iterations`` in TRL)."""

    beta: float = 0.0
    """Weight of the KL to the reference; 0 keeps no reference at all."""
    kl_in_reward: bool = False
    """Take beta times the KL off a response's reward, instead of adding it to the loss."""
    epsilon: float = 0.2
    """The surrogate ignores gains from ratios below 1 - this."""
    epsilon_high: float | None = None
    """And above 1 + this; None takes ``epsilon``. For ``cispo`` the largest ratio itself."""
    delta: float | None = None
    """Largest ratio of a token with a negative advantage, above 1 + ``epsilon_high``; None sets no
    bound."""
    loss_type: str = "dapo"
    """How tokens are averaged: grpo, dr_grpo, dapo, bnpo, luspo; or cispo, sapo."""
    sapo_temperature_pos: float = 1.0
    """How fast ``sapo``'s slope fades where advantages are positive."""
    sapo_temperature_neg: float = 1.05
    """And where they are negative, or 0."""
    importance_sampling_level: str = "token"
    """Ratios of tokens, or of whole responses (``sequence``). GSPO, ``algo=gspo``, averages by
    response too: ``loss_type=grpo``."""
    scale_rewards: str = "group"
    """Divide advantages by the deviation of the rewards in the group, the batch, or not (none)."""
    baseline: str = "group"
    """What a reward is compared with: mean of its group, leave_one_out (RLOO), or the batch's."""
    multi_objective_aggregation: str = "sum_then_normalize"
    """Of rewards that are weighted sums: normalize the sum in its group, or each part, and then the
    sum over the batch (``normalize_then_sum``: GDPO), so that none counts by how widely it
    varies."""
    mask_truncated_completions: bool = False
    """Learn nothing from episodes whose last response ``max_new_tokens`` cut off."""
    max_resamples: int = 0
    """How often an iteration's groups of equal rewards are replaced by others (DAPO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {
            "loss_type": GRPO_LOSSES,
            "importance_sampling_level": LEVELS,
            "scale_rewards": SCALES,
            "baseline": BASELINES,
            "multi_objective_aggregation": AGGREGATIONS,
        }
        require_known(self, names)
        require(self, ("num_epochs", "num_generations"), lambda x: x >= 1, "at least 1")
        require(self, ("epsilon",), lambda x: x > 0, "positive")
        require(self, ("epsilon_high",), lambda x: x is None or x > 0, "positive, or null")
        require(self, ("beta", "max_resamples"), lambda x: x >= 0, "0 or more")
        if self.batch_size % self.num_generations:
            raise ValueError(
                f"algo.batch_size={self.batch_size} must be a multiple of num_generations ="
                f" {self.num_generations}"
            )
        alone = (self.scale_rewards == "group", self.baseline in ("group", "leave_one_out"))
        if self.num_generations == 1 and any(alone):
            raise ValueError(
                "algo.num_generations=1 leaves nothing to compare a response with in its group:"
                " raise it, or set algo.baseline=batch and algo.scale_rewards=batch"
            )
        if self.kl_in_reward and self.beta == 0:
            raise ValueError("algo.kl_in_reward=true needs algo.beta above 0")
        if self.loss_type == "cispo" and (self.epsilon_high or 0) < 1:
            raise ValueError(
                f"algo.loss_type=cispo takes algo.epsilon_high={self.epsilon_high} as the largest"
                " ratio itself: set it to 1 or more, 5 for example"
            )
        self._check_shape()
        by_part = self.multi_objective_aggregation == "normalize_then_sum"
        for name, plain in (("scale_rewards", "group"), ("baseline", "group")):
            if by_part and getattr(self, name) != plain:
                raise ValueError(
                    f"algo.{name}={getattr(self, name)} has no effect on"
                    " algo.multi_objective_aggregation=normalize_then_sum, which normalizes parts"
                    f" in their groups and their sum over the batch: set it to {plain}"
                )
        if by_part and self.kl_in_reward:
            raise ValueError(
                "algo.kl_in_reward=true adds a part to the reward that has no weight: set it to"
                " false, or algo.multi_objective_aggregation to sum_then_normalize"
            )

    def _check_shape(self) -> None:
        """
        Raises:
            ValueError: an option has no effect on the loss that was chosen, or contradicts it.
        """
        temperatures = ("sapo_temperature_pos", "sapo_temperature_neg")
        require(self, temperatures, lambda x: x > 0, "positive")
        if self.loss_type == "luspo" and self.importance_sampling_level != "sequence":
            raise ValueError(
                "algo.loss_type=luspo is a loss of whole responses: set"
                " algo.importance_sampling_level=sequence"
            )
        fields = self.__dataclass_fields__
        unread = {"delta"} if self.loss_type not in READ_DELTA else set()
        unread |= set(temperatures) if self.loss_type != "sapo" else {"epsilon", "epsilon_high"}
        for name in sorted(unread):
            value, default = getattr(self, name), fields[name].default
            if value != default:
                raise ValueError(
                    f"algo.{name}={value:g} has no effect on algo.loss_type={self.loss_type}: set"
                    f" it to {'null' if default is None else default}, or choose another loss"
                )
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        above = lambda x: x is None or x > 1 + high  # noqa: E731
        require(self, ("delta",), above, f"above 1 + epsilon_high = {1 + high:g}, or null")

    @property
    def judges_ends(self) -> str | None:
        return "algo.mask_truncated_completions" if self.mask_truncated_completions else None


class GRPO(OnlineModule):
    """GRPO over any causal language model; arguments as of ``OnlineModule``."""

    config_class = GRPOConfig
    shares_prompts = True
    saved_as: ClassVar = {"policy.base_model.": "language_model."}
    config: GRPOConfig

    @property
    def has_reference(self) -> bool:
        return self.config.beta > 0

    @property
    def recompute(self) -> bool:
        """Only where it tells something: in an iteration's first step the ratio is exactly 1."""
        return self.many_steps or self.config.sampler_is != "none" or self.elsewhere is not None

    @property
    def many_steps(self) -> bool:
        """Whether an iteration takes several optimizer steps."""
        c = self.config
        window = c.mini_batch_size * c.gradient_accumulation_steps
        return c.batch_size * c.num_epochs > window

    def learn_from(self, rollout: Rollout) -> tuple[Experience, dict[str, float]]:
        """Rewards -> advantages within groups."""
        c, trajectories, evaluation = self.config, rollout.trajectories, rollout.evaluation
        rewards = torch.tensor([t.total_reward for t in trajectories])
        counted = torch.tensor([not (t.failed or t.unscored) for t in trajectories])
        if c.kl_in_reward:
            divergence = evaluation.kl()
            assert divergence is not None  # beta is positive, so there is a reference
            rewards = rewards - c.beta * (divergence * evaluation.mask).sum(1)
        if c.multi_objective_aggregation == "normalize_then_sum":
            weights, parts = reward_parts(rollout)
            parts[~counted] = torch.nan
            advantages = decoupled_advantages(
                parts, weights, c.num_generations, reduce=self.sum_over_ranks
            )
        else:
            advantages = group_advantages(
                rewards,
                counted,
                c.num_generations,
                baseline=c.baseline,
                scale=c.scale_rewards,
                reduce=self.sum_over_ranks,
            )
        entropy = masked_mean(-evaluation.logprobs, evaluation.mask, reduce=self.sum_over_ranks)
        metrics = self._group_metrics(rewards, counted, rollout.resampled)
        metrics["rollout/entropy"] = entropy.item()
        if c.mask_truncated_completions:
            cut = [t.finish_reason == "length" for t in trajectories]
            evaluation = evaluation.without(cut)
        advantages = advantages[:, None].expand_as(evaluation.logprobs)
        advantages, corrections = self.corrected(advantages, evaluation, trajectories)
        experience = Experience(
            sequences=evaluation.sequences,
            positions=evaluation.positions,
            mask=evaluation.mask,
            old_logprobs=evaluation.logprobs,
            advantages=advantages,
            ref_logprobs=None if c.kl_in_reward else evaluation.ref_logprobs,
        )
        return experience, metrics | corrections

    def _group_metrics(self, rewards: Tensor, counted: Tensor, resampled: int) -> dict[str, float]:
        """How far the groups tell their responses apart."""
        groups = rewards.view(-1, self.config.num_generations)
        counts = counted.view_as(groups)
        highest = groups.masked_fill(~counts, -torch.inf).amax(1)
        lowest = groups.masked_fill(~counts, torch.inf).amin(1)
        equal = (highest <= lowest).float()
        total = self.sum_over_ranks(torch.stack([equal.sum(), torch.tensor(float(len(equal)))]))
        left_out = self.sum_over_ranks(torch.tensor(float(resampled)))
        return {
            "rollout/equal_groups": (total[0] / total[1]).item(),
            "rollout/resampled_groups": left_out.item(),
        }

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        c, tokens = self.config, batch.tokens
        scores = self.policy.score(tokens, temperature=c.temperature)
        logprobs = tokens.scatter(scores.logprobs)
        loss, metrics = grpo_loss(
            logprobs_BA=logprobs,
            old_logprobs_BA=batch.old_logprobs if self.many_steps else logprobs.detach(),
            advantages_BA=batch.advantages,
            mask_BA=tokens.mask,
            num_actions=batch.num_actions,
            max_new_tokens=c.max_new_tokens,
            loss_type=c.loss_type,
            epsilon=c.epsilon,
            epsilon_high=c.epsilon_high,
            delta=c.delta,
            sapo_temperature_pos=c.sapo_temperature_pos,
            sapo_temperature_neg=c.sapo_temperature_neg,
            importance_sampling_level=c.importance_sampling_level,
            ref_logprobs_BA=batch.ref_logprobs,
            beta=c.beta,
        )
        self.train_metrics.add_minibatch(
            {f"train/{name}": x for name, x in (metrics | {"loss": loss.detach()}).items()},
            divisor=batch.num_actions,
            actions=sum(map(len, tokens.positions)),
        )
        return loss

    def end_epoch(self) -> None:
        """Log what the iteration was like."""
        self.log_iteration(self.config.num_epochs)
