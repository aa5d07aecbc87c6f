"""What algorithms that learn from their own episodes share: acting, evaluating, being judged.

``RolloutDataModule`` calls ``act``, ``evaluate`` and ``experience``; an algorithm adds
``learn_from`` (episodes -> what is trained on) and ``training_step``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.ends import end_ids
from datamodules.experience import Experience
from datamodules.types import (
    ActionSpec,
    Evaluation,
    Observation,
    Response,
    Rollout,
    SamplingParams,
    Trajectory,
)
from rlmodules.algorithms.base import AlgorithmModule
from rlmodules.algorithms.config import OnlineConfig
from rlmodules.algorithms.evaluation import drawn_logprobs, evaluate, kept_mass, sampler_kl
from rlmodules.algorithms.held_out import NAN, REPORTED, HeldOut, absent
from rlmodules.algorithms.means import Means, Stopwatch
from rlmodules.algorithms.policy import load_policy, policy_from_export
from rlmodules.functional import masked_mean, masked_var, sampler_weights
from rlmodules.models import ModelConfig, PolicyModel, Reference
from rlmodules.models.saving import save_language_model
from rlmodules.models.vocabulary import require_end
from rlmodules.optimizers.schedule import last_rate
from rlmodules.sampling.decoding import Sampler, sample


class OnlineModule(AlgorithmModule):
    """A policy that plays episodes, with the frozen reference its KL is measured against.

    Args:
        config: settings, or a dict of them (as a checkpoint holds).
        model_config, model, tokenizer: see ``load_policy``.
    """

    epochs_option = "num_iterations"
    counted = ("iteration", "episodes", "tokens")
    config_class: ClassVar[type[OnlineConfig]]
    policy_class: ClassVar[type[PolicyModel]] = PolicyModel
    policy: PolicyModel
    shares_prompts: ClassVar[bool] = False
    """Whether to compute what episodes of one prompt begin with alike once, if the model can."""

    def __init__(
        self,
        config: OnlineConfig | dict[str, Any],
        model_config: ModelConfig | dict[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        c = self.config = self.config_class(**config) if isinstance(config, dict) else config
        self.policy, self.tokenizer, model_config = load_policy(
            self.policy_class, c, model_config, model, tokenizer
        )
        if self.shares_prompts and model_config.attn_implementation == "auto":
            self.policy.enable_packing()
        if model_config.compile:
            self.policy.compile_layers()
        else:
            self.policy.keep_less()
        self.sampler: Sampler = partial(sample, self.policy, self.tokenizer)
        self.elsewhere: Callable[[OnlineModule], Sampler] | None = None
        self.sampling = SamplingParams(
            max_new_tokens=c.max_new_tokens, temperature=c.temperature, top_k=c.top_k, top_p=c.top_p
        )
        self.reference = Reference(self.policy) if self.has_reference else None
        self.rollout_metrics: dict[str, float] = {}
        self.num_episodes = 0
        self.skip_updates = False  # a KL early stop: until the iteration ends
        self.update_clock = Stopwatch()
        self.held_out = HeldOut()
        self.watchers: list[Callable[[Rollout, Experience], None]] = []
        self.keep_settings(model_config)
        self.train()  # Lightning leaves the mode as it finds it

    @property
    def base_model(self) -> nn.Module:
        """The policy's causal language model, adapters included."""
        return self.policy.base_model

    @property
    def has_reference(self) -> bool:
        """Whether a KL to the policy as it was is of interest."""
        return True

    @property
    def recompute(self) -> bool:
        """Whether sampled tokens are scored again, as training scores them, before it begins."""
        return True

    def sample_elsewhere(self, make: Callable[["OnlineModule"], Sampler]) -> None:
        """Have another engine than ours write responses; how far it is off is measured then.

        Args:
            make: the sampler of a module: of this one, and of what is read back of its export.
        """
        self.elsewhere, self.sampler = make, make(self)

    def learn_from(self, rollout: Rollout) -> tuple[Experience, dict[str, float]]:
        """What the algorithm makes of episodes: training data, and metrics (``rollout/...``)."""
        raise NotImplementedError

    # ------------------------------------------------- what the data module asks

    def act(
        self, observations: Sequence[Observation], *, seeds: Sequence[int], env: ActionSpec
    ) -> list[Response]:
        """Sample a response to each observation from the current policy.

        Raises:
            ValueError: a response might not fit ``env.max_length``, the environment was made for
                another temperature, or nothing can end a response though it is to end.
        """
        params = self.sampling
        require_end(self.tokenizer, env.stop_sequences, self.config.judges_ends)
        if env.temperature not in (1.0, params.temperature):
            raise ValueError(
                f"env.temperature={env.temperature} but the policy samples at"
                f" {params.temperature}: set algo.temperature, or leave env.temperature at 1.0"
            )
        longest = max(len(observation.input_ids) for observation in observations)
        if env.max_length is not None and longest + params.max_new_tokens > env.max_length:
            raise ValueError(
                f"a prompt of {longest} tokens and algo.max_new_tokens={params.max_new_tokens}"
                f" exceed env.max_length={env.max_length}: raise it, or lower algo.max_new_tokens"
            )
        prompts = [observation.input_ids for observation in observations]
        ends = tuple(sorted(end_ids(self.tokenizer)))  # for engines that know no model's
        params = replace(params, stop_strings=tuple(env.stop_sequences), stop_token_ids=ends)
        with self.inference():
            return self.sampler(prompts, params, seeds)

    def fits(self, observation: Observation, env: ActionSpec) -> bool:
        """Whether there is room for a whole response to ``observation``."""
        needed = len(observation.input_ids) + self.sampling.max_new_tokens
        fits_env = env.max_length is None or needed <= env.max_length
        return fits_env and self.policy.positions.hold(needed)

    def evaluate(self, trajectories: Sequence[Trajectory]) -> Evaluation:
        """Log-probabilities under policy and reference, and values, of all sampled tokens."""
        with self.inference():
            return evaluate(
                self.policy,
                self.reference,
                trajectories,
                temperature=self.sampling.temperature,
                recompute=self.recompute,
            )

    def experience(self, rollout: Rollout) -> Experience:
        """What the iteration trains on; notes what its episodes were like, and starts its clock."""
        self.note_rollout(rollout)
        experience, metrics = self.learn_from(rollout)
        self.rollout_metrics |= metrics
        for watch in self.watchers:
            watch(rollout, experience)
        self.update_clock.start()
        return experience

    def note_rollout(self, rollout: Rollout) -> None:
        """Set ``rollout_metrics`` to what these episodes were like, over all processes."""
        evaluation, trajectories = rollout.evaluation, rollout.trajectories
        total = self.sum_over_ranks
        intact = torch.tensor([not t.failed for t in trajectories])
        scored = intact & torch.tensor([not t.unscored for t in trajectories])
        mean = lambda values: masked_mean(torch.tensor(values).float(), intact, reduce=total)  # noqa: E731
        rewards = torch.tensor([t.total_reward for t in trajectories])
        lengths = torch.tensor([float(sum(map(len, t.actions))) for t in trajectories])
        cut = 1 - kept_mass(evaluation, trajectories)
        self.num_episodes = int(total(intact.sum().float()))
        episodes, tokens = map(int, total(torch.tensor([len(intact), lengths.sum()])).tolist())
        self.began = {"iteration": 1, "episodes": episodes, "tokens": tokens}
        metrics: dict[str, float | Tensor] = {
            "rollout/response_length": masked_mean(lengths, intact, reduce=total),
            "rollout/eos_fraction": mean([t.finish_reason == "eos" for t in trajectories]),
            "rollout/cut_mass": masked_mean(cut, evaluation.mask, reduce=total),
            "rollout/failed": 1 - total(intact.sum().float()) / episodes,
            "rollout/unscored": mean([t.unscored for t in trajectories]),
            "time/rollout_s": rollout.seconds["rollout"],
            "time/evaluate_s": rollout.seconds["evaluate"],
            "time/rollout_tokens_per_s": tokens / rollout.seconds["rollout"],
        }
        if (divergence := evaluation.kl()) is not None:
            metrics["rollout/kl"] = masked_mean(divergence, evaluation.mask, reduce=total)
        if self.recompute:
            apart = sampler_kl(evaluation, trajectories)
            metrics["rollout/sampler_kl"] = masked_mean(apart, evaluation.mask, reduce=total)
        applies = total(scored.sum().float()) > 0  # else there is no mean: 0 would be one
        metrics["rollout/reward"] = masked_mean(rewards, scored, reduce=total)
        metrics["rollout/reward_std"] = masked_var(rewards, scored, reduce=total).sqrt()
        metrics |= {} if applies else dict.fromkeys(("rollout/reward", "rollout/reward_std"), NAN)
        parts = Means()  # processes may have met different ones
        for trajectory in trajectories:
            numbers = {k: v for k, v in trajectory.metrics.items() if k.startswith(REPORTED)}
            parts.add({f"rollout/{name}": value for name, value in numbers.items()})
        metrics |= self.over_ranks(parts)
        said = {name: float(value) for name, value in metrics.items()}
        self.rollout_metrics = absent(self.rollout_metrics, "rollout") | said

    def corrected(
        self, advantages: Tensor, evaluation: Evaluation, trajectories: Sequence[Trajectory]
    ) -> tuple[Tensor, dict[str, float]]:
        """``advantages`` [B, A] times the weights that ``algo.sampler_is`` gives their tokens.

        (A surrogate is min(r A, clip(r) A), so this is the surrogate times the weight; KL, entropy
        and the critic's loss are not weighted, as in TRL.)
        """
        c, mask, total = self.config, evaluation.mask, self.sum_over_ranks
        if c.sampler_is == "none":
            return advantages, {}
        weights, capped = sampler_weights(
            logprobs_BA=evaluation.logprobs,
            drawn_logprobs_BA=drawn_logprobs(evaluation, trajectories),
            mask_BA=mask,
            level=c.sampler_is,
            cap=c.sampler_is_cap,
        )
        return advantages * weights, {
            "rollout/sampler_is_weight": masked_mean(weights, mask, reduce=total).item(),
            "rollout/sampler_is_capped": masked_mean(capped.float(), mask, reduce=total).item(),
        }

    def log_iteration(self, epochs: int, **more: float) -> None:
        """Log the iteration that ends: ``epochs`` passes over episodes, ``more`` of training."""
        metrics = absent(self.trainer.callback_metrics, "train", ("",)) | self.rollout_metrics
        tokens = metrics["rollout/response_length"] * self.num_episodes * epochs
        metrics |= self.over_ranks(self.train_metrics) | {
            "train/learning_rate": last_rate(self.trainer),
            "time/update_s": (seconds := self.update_clock.seconds),
            "time/update_tokens_per_s": tokens / seconds,
            **{f"train/{name}": value for name, value in more.items()},
        }
        self.log_row(metrics)
        self.train_metrics.clear()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy."""
        weights = [p for p in self.base_model.parameters() if p.requires_grad]
        c = self.config
        return [{"params": weights, "lr": c.learning_rate, "weight_decay": c.weight_decay}]

    def warmup_steps(self, total: int) -> int:
        return self.config.warmup_steps or math.ceil(self.config.warmup_ratio * total)

    # -------------------------------------------------------------- held out

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.update_clock.lap()  # here, for an evaluation may follow before the epoch ends

    def validation_step(  # type: ignore[override]  # rows, for the callback that shows them
        self, rollout: Rollout, batch_idx: int
    ) -> list[dict[str, Any]]:
        """Judge held-out episodes; returns one row a sample for whoever shows them."""
        return self.held_out.add(rollout, self.tokenizer)

    def on_validation_epoch_end(self) -> None:
        self.log_row(self.held_out.metrics(self))

    # ------------------------------------------------------------ checkpoints

    def export(self, dirpath: Path, *, merge: bool | None = None, dtype: str | None = None) -> None:
        """Policy and tokenizer in ``dirpath``; see ``save_language_model``."""
        save_language_model(self.base_model, self.tokenizer, dirpath, merge=merge, dtype=dtype)

    def from_export(self, dirpath: Path) -> "AlgorithmModule":
        written = policy_from_export(self, dirpath)
        if self.elsewhere is not None:
            written.sample_elsewhere(self.elsewhere)
        return written

    def iteration_state(self) -> dict[str, Any]:
        return super().iteration_state() | {
            "rollout_metrics": self.rollout_metrics,
            "num_episodes": self.num_episodes,
            "skip_updates": self.skip_updates,
            "update_seconds": self.update_clock.seconds,
        }

    def load_iteration_state(self, state: dict[str, Any]) -> None:
        super().load_iteration_state(state)
        self.rollout_metrics, self.num_episodes = state["rollout_metrics"], state["num_episodes"]
        self.skip_updates = state["skip_updates"]
        self.update_clock.start(state["update_seconds"])
