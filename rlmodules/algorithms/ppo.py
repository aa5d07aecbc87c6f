"""Proximal Policy Optimization of a language model (Schulman et al. 2017, arXiv:1707.06347).

The recipe is that of RLHF (Ziegler et al. 2019, arXiv:1909.08593): every token is an action, the
score of the whole response is the reward of its last token, and each token is charged for its
divergence from a frozen reference. We deviate in three places: losses are sums over tokens divided
by the token count of the whole optimizer step; the critic shares the policy's backbone and can be
warmed up with the policy frozen; a KL early stop skips the rest of an iteration's updates.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.types import Experience, Minibatch, action_rewards
from rlmodules.algorithms import policy
from rlmodules.algorithms.online import OnlineConfig, OnlineModule
from rlmodules.algorithms.policy import AdaptiveKLController
from rlmodules.checks import require
from rlmodules.functional import (
    KL_ESTIMATORS,
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy_bonus,
    explained_variance,
    gae,
    kl_estimate,
    masked_mean,
    token_logprobs,
    whiten,
)
from rlmodules.models import ModelConfig, PPOModel, load_model, load_tokenizer, projection


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
    """Taken off the reward of a response that neither EOS nor a stop string ended."""
    reward_clip: float | None = None
    """Rewards are clipped to ± this; the logged reward is not."""
    target_kl: float | None = None
    """Skip the rest of an iteration's updates once KL(old || new) of a minibatch exceeds this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kl_estimator not in KL_ESTIMATORS:
            raise ValueError(f"algo.kl_estimator={self.kl_estimator!r}: use one of {KL_ESTIMATORS}")
        require(self, ("ppo_epochs",), lambda x: x >= 1, "at least 1")
        positive = ("clip_ratio", "value_clip", "kl_target", "kl_horizon")
        require(self, positive, lambda x: x > 0, "positive")
        not_negative = ("kl_penalty_coef", "entropy_coef", "value_coef", "value_warmup_iterations")
        require(self, not_negative, lambda x: x >= 0, "0 or more")
        require(self, ("gamma", "lam"), lambda x: 0 <= x <= 1, "between 0 and 1")
        optional = ("value_learning_rate", "reward_clip", "target_kl")
        require(self, optional, lambda x: x is None or x > 0, "positive, or null")


class PPO(OnlineModule):
    """PPO over any causal language model.

    Args:
        config: settings, or a dict of them (as a checkpoint holds).
        model_config: how to load the model; default: ``config.model_name`` with LoRA off.
        model, tokenizer: used instead of loading what ``model_config`` names.
    """

    def __init__(
        self,
        config: PPOConfig | dict[str, Any],
        model_config: ModelConfig | dict[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        config = PPOConfig(**config) if isinstance(config, dict) else config
        model_config = ModelConfig.of(model_config, config.model_name, given=model is not None)
        with torch.random.fork_rng():  # new adapters and heads are a function of the seed
            torch.manual_seed(config.seed)
            actor_critic = PPOModel(load_model(model_config) if model is None else model)
        tokenizer = tokenizer or load_tokenizer(model_config)
        super().__init__(actor_critic.base_model, tokenizer, config)
        self.save_hyperparameters({"config": asdict(config), "model_config": asdict(model_config)})
        self.policy = actor_critic
        c = self.config = config
        self.kl_controller = AdaptiveKLController(c.kl_penalty_coef, c.kl_target, c.kl_horizon)
        self.train()  # no dropout is left, so the mode matters to gradient checkpointing alone

    @property
    def base_model(self) -> nn.Module:
        return self.policy.base_model

    def value_fn(self, hidden_NH: Tensor) -> Tensor:
        return self.policy.value_head(hidden_NH)

    def experience(self, rollout: Any) -> Experience:
        """Rewards with the KL penalty -> advantages and returns; notes the rollout's metrics."""
        c, seen, played = self.config, rollout.evaluation, rollout.trajectories
        scores = action_rewards(played, seen.mask)
        if c.reward_clip is not None:
            scores = scores.clamp(-c.reward_clip, c.reward_clip)
        if c.missing_eos_penalty is not None:
            cut = torch.tensor([t.metrics["finish_reason"] == "length" for t in played])
            scores[range(len(played)), seen.mask.sum(1) - 1] -= c.missing_eos_penalty * cut
        penalty = kl_estimate(seen.logprobs, seen.ref_logprobs, c.kl_estimator)
        rewards = scores - self.kl_controller.value * penalty
        advantages, returns = gae(rewards, seen.values, seen.mask, gamma=c.gamma, lam=c.lam)

        self.note_rollout(rollout)
        total = self.sum_over_ranks
        self.rollout_metrics |= {
            "rollout/kl_coef": self.kl_controller.value,
            "rollout/kl_penalty": masked_mean(penalty, seen.mask, reduce=total).item(),
            "rollout/value": masked_mean(seen.values, seen.mask, reduce=total).item(),
            "rollout/return": masked_mean(returns, seen.mask, reduce=total).item(),
            "rollout/explained_variance": explained_variance(
                seen.values, returns, seen.mask, reduce=total
            ).item(),
        }
        if c.whiten_advantages:
            advantages = whiten(advantages, seen.mask, reduce=total)
        self.update_clock.start()
        return Experience(
            sequences=seen.sequences,
            positions=seen.positions,
            mask=seen.mask,
            old_logprobs=seen.logprobs,
            advantages=advantages,
            values=seen.values,
            returns=returns,
        )

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor:
        """Clipped surrogate, clipped value loss and entropy bonus of one minibatch."""
        if self.skip_updates:
            return torch.zeros((), device=self.device, requires_grad=True)  # reaches no weight
        c, tokens = self.config, batch.tokens
        shared = {"mask_BA": tokens.mask, "num_actions": batch.num_actions}
        warming_up = self.current_epoch < c.value_warmup_iterations
        with torch.set_grad_enabled(not warming_up):
            hidden = policy.action_hidden(self.base_model, tokens)
        value_loss, metrics = clipped_value_loss(
            values_BA=tokens.scatter(self.policy.value_head(hidden)),
            old_values_BA=batch.values,
            returns_BA=batch.returns,
            value_clip=c.value_clip,
            **shared,
        )
        loss = c.value_coef * value_loss
        if not warming_up:
            head = projection(self.base_model)
            logprobs, entropy = token_logprobs(
                hidden, head, tokens.actions, temperature=c.temperature
            )
            policy_loss, policy_metrics = clipped_surrogate_loss(
                logprobs_BA=tokens.scatter(logprobs),
                old_logprobs_BA=batch.old_logprobs,
                advantages_BA=batch.advantages,
                clip_ratio=c.clip_ratio,
                **shared,
            )
            bonus, entropy_metrics = entropy_bonus(entropy_BA=tokens.scatter(entropy), **shared)
            loss = loss + policy_loss + c.entropy_coef * bonus
            metrics |= policy_metrics | entropy_metrics | {"policy_loss": policy_loss.detach()}
            self._watch_kl(metrics["approx_kl"], batch_idx)
        metrics |= {"value_loss": value_loss.detach(), "loss": loss.detach()}
        self.train_metrics.add({f"train/{name}": value for name, value in metrics.items()})
        return loss

    def _watch_kl(self, approx_kl: Tensor, batch_idx: int) -> None:
        """Note that the policy has moved too far; only whole accumulation windows are skipped."""
        if self.config.target_kl is None:
            return
        exceeded = bool(approx_kl > self.config.target_kl)
        exceeded = self.trainer.strategy.reduce_boolean_decision(exceeded, all=False)
        window_ends = (batch_idx + 1) % self.config.gradient_accumulation_steps == 0
        self.skip_updates = exceeded and window_ends

    def on_train_epoch_end(self) -> None:
        """Steer the KL coefficient and log what the iteration was like."""
        self.kl_controller.update(self.rollout_metrics["rollout/kl"], self.num_episodes)
        self.log("train/stopped_early", float(self.skip_updates))
        self.log_iteration(self.config.ppo_epochs)
        self.skip_updates = False

    def export(self, dirpath: Path, *, merge: bool = False) -> None:
        """Policy, tokenizer and value head in ``dirpath``."""
        super().export(dirpath, merge=merge)
        head = {k: v.cpu().float() for k, v in self.policy.value_head.state_dict().items()}
        save_file(head, dirpath / "value_head.safetensors")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        c = self.config
        weights = [p for p in self.base_model.parameters() if p.requires_grad]
        head = list(self.policy.value_head.parameters())
        groups = [
            {"params": weights, "lr": c.learning_rate, "weight_decay": c.weight_decay},
            {"params": head, "lr": c.value_learning_rate or c.learning_rate, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, fused=True)
