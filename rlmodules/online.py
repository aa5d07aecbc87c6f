"""What algorithms that learn from their own episodes share: acting, evaluating, being judged.

``RolloutDataModule`` calls ``act`` and ``evaluate``; an algorithm adds ``experience`` and
``training_step``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.environments.base import Environment, Observation, Trajectory
from rlmodules import policy
from rlmodules.base import AlgorithmModule, Stopwatch
from rlmodules.functional import masked_mean, masked_var
from rlmodules.held_out import HeldOut
from rlmodules.models import backbone
from rlmodules.models.layout import can_pack
from rlmodules.models.saving import save_language_model
from rlmodules.sampling import Response, SamplingParams


class OnlineModule(AlgorithmModule):
    """A policy that plays episodes, with the frozen reference its KL is measured against.

    Args:
        base_model: the policy, a causal language model.
        tokenizer: of the policy.
        sampling: how responses are drawn; stop strings come from the environment.
        with_reference: whether a KL to the policy as it was is of interest.
        packs: compute what episodes of one prompt begin with alike once, if the model allows it.
    """

    recompute = True
    """Whether log-probabilities of sampled tokens are computed again, as training computes them."""

    def __init__(
        self,
        base_model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sampling: SamplingParams,
        *,
        with_reference: bool = True,
        packs: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer, self.sampling = tokenizer, sampling
        self.packs = packs and can_pack(backbone(base_model))
        self.reference = policy.Reference(base_model) if with_reference else None
        self.rollout_metrics: dict[str, float] = {}
        self.num_episodes = 0
        self.skip_updates = False  # a KL early stop: until the iteration ends
        self.update_clock = Stopwatch()
        self.held_out = HeldOut()
        self._every: int | None = None

    @property
    def base_model(self) -> nn.Module:
        """The policy: a causal language model, adapters included."""
        raise NotImplementedError

    def value_fn(self, hidden_NH: Tensor) -> Tensor:
        """[N], the critic's values; zeros for algorithms that have none."""
        return hidden_NH.new_zeros(len(hidden_NH), dtype=torch.float32)

    def act(
        self, observations: Sequence[Observation], *, seeds: Sequence[int], env: Environment
    ) -> list[Response]:
        """Sample a response to each observation from the current policy."""
        with self.inference():
            return policy.act(
                self.base_model, self.tokenizer, observations, self.sampling, seeds, env
            )

    def fits(self, observation: Observation, env: Environment) -> bool:
        """Whether there is room for a whole response to ``observation``."""
        return policy.fits(self.base_model, observation, env, self.sampling)

    def evaluate(self, trajectories: Sequence[Trajectory]) -> policy.Evaluation:
        """Log-probabilities under policy and reference, and values, of all sampled tokens."""
        with self.inference():
            return policy.evaluate(
                self.base_model,
                self.reference,
                trajectories,
                temperature=self.sampling.temperature,
                value_fn=self.value_fn,
                packs=self.packs,
                recompute=self.recompute,
            )

    def note_rollout(self, rollout: Any) -> None:
        """Set ``rollout_metrics`` to what these episodes were like, over all processes."""
        seen, played, total = rollout.evaluation, rollout.trajectories, self.sum_over_ranks
        intact = torch.tensor([not t.failed for t in played])
        mean = lambda values: masked_mean(torch.tensor(values).float(), intact, reduce=total)  # noqa: E731
        rewards = torch.tensor([t.total_reward for t in played])
        lengths = torch.tensor([float(sum(map(len, t.actions))) for t in played])
        kept = torch.tensor([k for t in played for k in t.metrics["kept_mass"]])
        self.num_episodes = int(total(intact.sum().float()))
        metrics = {
            "rollout/reward": masked_mean(rewards, intact, reduce=total),
            "rollout/reward_std": masked_var(rewards, intact, reduce=total).sqrt(),
            "rollout/response_length": masked_mean(lengths, intact, reduce=total),
            "rollout/eos_fraction": mean([t.metrics["finish_reason"] == "eos" for t in played]),
            "rollout/cut_mass": 1 - masked_mean(kept, kept >= 0, reduce=total),
            "rollout/failed": 1
            - total(intact.sum().float()) / total(torch.tensor(len(played) * 1.0)),
            "time/rollout_s": rollout.seconds["rollout"],
            "time/evaluate_s": rollout.seconds["evaluate"],
            "time/rollout_tokens_per_s": total(lengths.sum()) / rollout.seconds["rollout"],
        }
        if (divergence := seen.kl()) is not None:
            metrics["rollout/kl"] = masked_mean(divergence, seen.mask, reduce=total)
        for name in sorted({k for t in played for k in t.metrics if k.startswith("reward_")}):
            metrics[f"rollout/{name}"] = mean([t.metrics.get(name, 0.0) for t in played])
        self.rollout_metrics = {name: float(value) for name, value in metrics.items()}

    def log_iteration(self, epochs: int) -> None:
        """Log the iteration that ends, in which ``epochs`` passes were made over its episodes."""
        metrics, seconds = dict(self.rollout_metrics), self.update_clock.seconds
        tokens = metrics["rollout/response_length"] * self.num_episodes * epochs
        metrics |= self.over_ranks(self.train_metrics) | {
            "train/learning_rate": self.optimizers().param_groups[0]["lr"],
            "time/update_s": seconds,
            "time/update_tokens_per_s": tokens / seconds,
            "iteration": float(self.current_epoch + 1),
        }
        self.log_dict(metrics)
        self.train_metrics.clear()

    # -------------------------------------------------------------- held out

    def on_train_epoch_start(self) -> None:
        """The end of a run is always evaluated, whatever ``eval_every`` says."""
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self._every, self.trainer.check_val_every_n_epoch = (
                self.trainer.check_val_every_n_epoch,
                1,
            )

    def on_fit_end(self) -> None:
        if self._every is not None:
            self.trainer.check_val_every_n_epoch, self._every = self._every, None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.update_clock.lap()  # here, for an evaluation may follow before the epoch ends

    def validation_step(self, rollout: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Judge held-out episodes; returns one row a sample for whoever shows them."""
        return self.held_out.add(rollout, self.tokenizer)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.held_out.metrics(self))

    # ------------------------------------------------------------ checkpoints

    def export(self, dirpath: Path, *, merge: bool = False) -> None:
        """Policy and tokenizer in ``dirpath``; see ``save_language_model``."""
        save_language_model(self.base_model, self.tokenizer, dirpath, merge=merge)

    def iteration_state(self) -> dict[str, Any]:
        return super().iteration_state() | {
            "rollout_metrics": self.rollout_metrics,
            "num_episodes": self.num_episodes,
            "skip_updates": self.skip_updates,
        }

    def load_iteration_state(self, state: dict[str, Any]) -> None:
        super().load_iteration_state(state)
        self.rollout_metrics, self.num_episodes = state["rollout_metrics"], state["num_episodes"]
        self.skip_updates = state["skip_updates"]
