"""Proximal Policy Optimization of a language model (Schulman et al. 2017, arXiv:1707.06347).

The recipe is that of RLHF (Ziegler et al. 2019, arXiv:1909.08593): every token is an action, the
score of the whole response is the reward of its last token, and each token is charged for its
divergence from a frozen reference. We deviate in three places: losses are sums over tokens divided
by the token count of the whole optimizer step; the critic shares the policy's backbone and can be
warmed up with the policy frozen; a KL early stop skips the rest of an iteration's updates.
"""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from datamodules.experience import Experience, Minibatch
from datamodules.types import Rollout, action_rewards
from rlmodules.algorithms.config import OnlineConfig
from rlmodules.algorithms.means import Means
from rlmodules.algorithms.online import OnlineModule
from rlmodules.checks import require, require_known
from rlmodules.functional import (
    KL_ESTIMATORS,
    adapt_kl_coefficient,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    masked_mean,
    ppo_loss,
    whiten,
)
from rlmodules.functional.kl import LARGEST_ERROR
from rlmodules.functional.policy_losses import Loss
from rlmodules.models import PPOModel
from rlmodules.models.saving import save_value_head


@dataclass
class PPOConfig(OnlineConfig):
    """Settings of PPO; the Python API and the schema of ``conf/algo/ppo.yaml`` alike."""

    temperature: float = 0.7
    top_p: float = 0.9

    ppo_epochs: int = 4
    """Passes over each iteration's episodes."""
    gamma: float = 0.99
    """Discount factor a token."""
    lam: float = 0.95
    """Lambda of GAE: 0 trusts the critic alone, 1 the returns alone."""
    clip_ratio: float = 0.2
    """The surrogate ignores gains from ratios beyond 1 ± this."""
    value_clip: float = 0.2
    """The critic's loss ignores gains from moves beyond ± this."""

    kl_penalty_coef: float = 0.01
    """Initial price of a nat of KL, in units of reward."""
    kl_target: float = 0.01
    """KL to the reference that the controller steers to, in nats a token."""
    kl_horizon: int = 10000
    """Episodes over which a constant full error moves the coefficient by 20%."""
    kl_estimator: str = "k1"
    """Estimator of the penalty: k1, k2 or k3."""

    entropy_coef: float = 0.01
    """Weight of the entropy bonus."""
    value_coef: float = 0.5
    """Weight of the critic's loss."""
    value_learning_rate: float | None = None
    """Of the value head; None takes ``learning_rate``."""
    value_warmup_iterations: int = 0
    """First iterations in which only the value head learns and the policy stays as it is."""
    whiten_advantages: bool = True
    """Shift and scale each iteration's advantages to mean 0 and variance 1."""
    missing_eos_penalty: float | None = None
    """Taken off the reward of a response that neither an end token nor a stop string ended."""
    reward_clip: float | None = None
    """Rewards are clipped to ± this; the logged reward is not."""
    early_stop_kl: float | None = None
    """Skip the rest of an iteration's updates once KL(old || new) of one of them exceeds this."""
    target_kl: float | None = None
    """The former name of ``early_stop_kl``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_kl is not None:
            warnings.warn("algo.target_kl is now algo.early_stop_kl", FutureWarning, stacklevel=3)
            if self.early_stop_kl is not None:
                raise ValueError("algo.target_kl is the former name of early_stop_kl: set one")
            self.early_stop_kl, self.target_kl = self.target_kl, None
        require_known(self, {"kl_estimator": KL_ESTIMATORS})
        require(self, ("ppo_epochs",), lambda x: x >= 1, "at least 1")
        positive = ("clip_ratio", "value_clip", "kl_target", "kl_horizon")
        require(self, positive, lambda x: x > 0, "positive")
        shortest = LARGEST_ERROR * self.batch_size
        what = f"above {shortest:g}, a fifth of algo.batch_size, or a step of the KL controller"
        require(self, ("kl_horizon",), lambda x: x > shortest, f"{what} could take all of it")
        not_negative = ("kl_penalty_coef", "entropy_coef", "value_coef", "value_warmup_iterations")
        require(self, not_negative, lambda x: x >= 0, "0 or more")
        require(self, ("gamma", "lam"), lambda x: 0 <= x <= 1, "between 0 and 1")
        optional = ("value_learning_rate", "reward_clip", "early_stop_kl")
        require(self, optional, lambda x: x is None or x > 0, "positive, or null")

    @property
    def judges_ends(self) -> str | None:
        return None if self.missing_eos_penalty is None else "algo.missing_eos_penalty"


class AdaptiveKLController(nn.Module):
    """The coefficient of the KL penalty, steered so that the KL comes to its target."""

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        super().__init__()
        self.value = init_kl_coef  # a plain number: half precision must not round it
        self.target, self.horizon = target, horizon

    def update(self, kl: float, num_sequences: int) -> None:
        """Take the KL (nats a token) measured on ``num_sequences`` episodes of all processes."""
        self.value = adapt_kl_coefficient(
            self.value,
            kl,
            target=self.target,
            horizon=self.horizon,
            num_sequences=num_sequences,
        )

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.value, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.value = float(state)


class PPO(OnlineModule):
    """PPO over any causal language model; arguments as of ``OnlineModule``."""

    config_class = PPOConfig
    policy_class = PPOModel
    config: PPOConfig
    policy: PPOModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        c = self.config
        self.kl_controller = AdaptiveKLController(c.kl_penalty_coef, c.kl_target, c.kl_horizon)
        self._window_kl = Means()

    def learn_from(self, rollout: Rollout) -> tuple[Experience, dict[str, float]]:
        """Rewards with the KL penalty -> advantages and returns."""
        c, trajectories = self.config, rollout.trajectories
        # An episode that no reward applies to has no return: nothing is learned from it.
        evaluation = rollout.evaluation.without([t.unscored for t in trajectories])
        mask, values, total = evaluation.mask, evaluation.values, self.sum_over_ranks
        scores = action_rewards(trajectories, mask)
        if c.reward_clip is not None:
            scores = scores.clamp(-c.reward_clip, c.reward_clip)
        if c.missing_eos_penalty is not None:
            cut = torch.tensor([t.finish_reason == "length" for t in trajectories])
            scores[range(len(trajectories)), mask.sum(1) - 1] -= c.missing_eos_penalty * cut
        assert evaluation.ref_logprobs is not None  # PPO always has a reference
        penalty = kl_estimate(evaluation.logprobs, evaluation.ref_logprobs, c.kl_estimator)
        rewards = scores - self.kl_controller.value * penalty
        advantages, returns = gae(rewards, values, mask, gamma=c.gamma, lam=c.lam)
        explained = explained_variance(values, returns, mask, reduce=total)
        metrics = {
            "rollout/kl_coef": self.kl_controller.value,
            "rollout/kl_penalty": masked_mean(penalty, mask, reduce=total).item(),
            "rollout/value": masked_mean(values, mask, reduce=total).item(),
            "rollout/return": masked_mean(returns, mask, reduce=total).item(),
            "rollout/explained_variance": explained.item(),
        }
        if c.whiten_advantages:
            advantages = whiten(advantages, mask, reduce=total)
        advantages, weights = self.corrected(advantages, evaluation, trajectories)
        experience = Experience(
            sequences=evaluation.sequences,
            positions=evaluation.positions,
            mask=mask,
            old_logprobs=evaluation.logprobs,
            advantages=advantages,
            values=values,
            returns=returns,
            rewards=rewards,
        )
        return experience, metrics | weights

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor | None:
        """Clipped surrogate, clipped value loss and entropy bonus of one minibatch."""
        if self.skip_updates:
            return self._no_step()
        num_actions = sum(map(len, batch.tokens.positions))  # the mask's are on the device
        if self.current_epoch < self.config.value_warmup_iterations:
            loss, metrics = self._critic_loss(batch)
        else:
            loss, metrics = self._loss(batch)
            self._window_kl.add({"kl": metrics["approx_kl"]}, weight=num_actions)
        named = {f"train/{k}": x for k, x in (metrics | {"loss": loss.detach()}).items()}
        self.train_metrics.add_minibatch(named, divisor=batch.num_actions, actions=num_actions)
        return loss

    def _no_step(self) -> Tensor | None:
        """A loss that teaches nothing; under a loss scale none at all: it wants gradients."""
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return None
        if isinstance(self.trainer.strategy, DDPStrategy):  # has to meet a weight; see below
            return 0.0 * next(p for p in self.parameters() if p.requires_grad).sum()
        return torch.zeros((), device=self.device, requires_grad=True)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **told: Any) -> None:
        if self.skip_updates:  # zeros would still have the optimizer move by what it remembers
            optimizer.zero_grad(set_to_none=True)
        super().configure_gradient_clipping(optimizer, *args, **told)

    def _loss(self, batch: Minibatch) -> Loss:
        c, tokens = self.config, batch.tokens
        scores = self.policy.score(
            tokens,
            temperature=c.temperature,
            with_entropy=True,
            entropy_grad=c.entropy_coef > 0,
            with_values=True,
        )
        assert scores.entropy is not None and scores.values is not None
        return ppo_loss(
            logprobs_BA=tokens.scatter(scores.logprobs),
            old_logprobs_BA=batch.old_logprobs,
            advantages_BA=batch.advantages,
            mask_BA=tokens.mask,
            num_actions=batch.num_actions,
            clip_ratio=c.clip_ratio,
            entropy_BA=tokens.scatter(scores.entropy),
            entropy_coef=c.entropy_coef,
            values_BA=tokens.scatter(scores.values),
            old_values_BA=batch.values,
            returns_BA=batch.returns,
            value_clip=c.value_clip,
            value_coef=c.value_coef,
        )

    def _critic_loss(self, batch: Minibatch) -> Loss:
        """While the critic warms up, the policy stays as it is."""
        c, tokens = self.config, batch.tokens
        assert batch.values is not None and batch.returns is not None
        loss, metrics = clipped_value_loss(
            values_BA=tokens.scatter(self.policy.values(tokens)),
            old_values_BA=batch.values,
            returns_BA=batch.returns,
            mask_BA=tokens.mask,
            num_actions=batch.num_actions,
            value_clip=c.value_clip,
        )
        return c.value_coef * loss, metrics | {"value_loss": loss.detach()}

    def on_train_batch_start(self, batch: Minibatch, batch_idx: int) -> None:
        """Skip the iteration's other updates once the policy has moved too far: by the mean over
        the tokens of a whole accumulation window, of all processes."""
        super().on_train_batch_start(batch, batch_idx)
        c = self.config
        if c.early_stop_kl is None or batch_idx % c.gradient_accumulation_steps:
            return
        if window := self._window_kl.compute(self.sum_over_ranks):
            self.skip_updates = window["kl"] > c.early_stop_kl
            self._window_kl.clear()

    def iteration_state(self) -> dict[str, Any]:
        return super().iteration_state() | {"window_kl": self._window_kl.state_dict()}

    def load_iteration_state(self, state: dict[str, Any]) -> None:
        super().load_iteration_state(state)
        self._window_kl.load_state_dict(state.get("window_kl", Means().state_dict()))

    def end_epoch(self) -> None:
        """Steer the KL coefficient and log what the iteration was like."""
        self.kl_controller.update(self.rollout_metrics["rollout/kl"], self.num_episodes)
        self.log_iteration(self.config.ppo_epochs, stopped_early=float(self.skip_updates))
        self.skip_updates = False
        self._window_kl.clear()

    def settings_changed(self, names: Collection[str]) -> None:
        super().settings_changed(names)
        if "kl_penalty_coef" in names:  # the steered one was steered from another start
            self.kl_controller.value = self.config.kl_penalty_coef

    def export(self, dirpath: Path, *, merge: bool | None = None, dtype: str | None = None) -> None:
        """Policy and tokenizer in ``dirpath``, the value head in a folder within: who serves the
        model loads all weights beside it."""
        super().export(dirpath, merge=merge, dtype=dtype)
        save_value_head(self.policy.value_head, dirpath)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy, and the value head with its own learning rate and no decay."""
        rate = self.config.value_learning_rate or self.config.learning_rate
        head = {"params": list(self.policy.value_head.parameters()), "weight_decay": 0.0}
        return [*super().parameter_groups(), head | {"lr": rate}]
