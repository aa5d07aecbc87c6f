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
from rlmodules.metrics import Means, distinct_bigrams
from rlmodules.models.saving import save_language_model
from rlmodules.sampling import Response, SamplingParams


class OnlineModule(AlgorithmModule):
    """A policy that plays episodes, with the frozen reference its KL is measured against.

    Args:
        base_model: the policy, a causal language model.
        tokenizer: of the policy.
        sampling: how responses are drawn; stop strings come from the environment.
    """

    def __init__(
        self,
        base_model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        sampling: SamplingParams,
    ) -> None:
        super().__init__()
        self.tokenizer, self.sampling = tokenizer, sampling
        self.reference = policy.Reference(base_model)
        self.rollout_metrics: dict[str, float] = {}
        self.num_episodes = 0
        self.skip_updates = False  # a KL early stop: until the iteration ends
        self.update_clock = Stopwatch()
        self._val, self._val_texts = Means(), []

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

    def evaluate(self, trajectories: Sequence[Trajectory]) -> policy.Evaluation:
        """Log-probabilities under policy and reference, and values, of all sampled tokens."""
        with self.inference():
            return policy.evaluate(
                self.base_model,
                self.reference,
                trajectories,
                temperature=self.sampling.temperature,
                value_fn=self.value_fn,
            )

    def note_rollout(self, rollout: Any) -> None:
        """Set ``rollout_metrics`` to what these episodes were like, over all processes."""
        seen, played, total = rollout.evaluation, rollout.trajectories, self.sum_over_ranks
        every = torch.ones(len(played), dtype=torch.bool)
        rewards = torch.tensor([t.total_reward for t in played])
        lengths = seen.mask.sum(1).float()
        ended = torch.tensor([t.metrics["finish_reason"] == "eos" for t in played]).float()
        kept = torch.tensor([k for t in played for k in t.metrics["kept_mass"]])
        self.num_episodes = int(total(every.sum().float()))
        metrics = {
            "rollout/reward": masked_mean(rewards, every, reduce=total),
            "rollout/reward_std": masked_var(rewards, every, reduce=total).sqrt(),
            "rollout/response_length": masked_mean(lengths, every, reduce=total),
            "rollout/eos_fraction": masked_mean(ended, every, reduce=total),
            "rollout/cut_mass": 1 - masked_mean(kept, kept >= 0, reduce=total),
            "rollout/kl": masked_mean(seen.logprobs - seen.ref_logprobs, seen.mask, reduce=total),
            "time/rollout_s": rollout.seconds["rollout"],
            "time/evaluate_s": rollout.seconds["evaluate"],
            "time/rollout_tokens_per_s": total(lengths.sum()) / rollout.seconds["rollout"],
        }
        self.rollout_metrics = {name: float(value) for name, value in metrics.items()}

    # -------------------------------------------------------------- held out

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.update_clock.lap()  # here, for an evaluation may follow before the epoch ends

    def validation_step(self, rollout: Any, batch_idx: int) -> list[dict[str, Any]]:
        """Judge held-out episodes; returns one row a sample for whoever shows them."""
        rows, seen = [], rollout.evaluation
        for i, trajectory in enumerate(rollout.trajectories):
            kl = (seen.logprobs[i] - seen.ref_logprobs[i])[seen.mask[i]]
            text = self.tokenizer.decode(torch.cat(trajectory.actions), skip_special_tokens=True)
            reward = trajectory.total_reward
            self._val.add({"val/kl": kl.mean()}, weight=len(kl))
            self._val.add(
                {
                    "val/reward": reward,
                    "val/response_length": len(kl),
                    "val/eos_fraction": trajectory.metrics["finish_reason"] == "eos",
                }
            )
            prompt = trajectory.observations[0].prompt
            rows.append(
                {"prompt": prompt, "response": text, "reward": reward, "kl": kl.mean().item()}
            )
        self._val_texts += [row["response"] for row in rows]
        return rows

    def on_validation_epoch_end(self) -> None:
        texts = self._val_texts
        if self.trainer.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, texts)
            texts = [text for part in gathered for text in part]
        metrics = self.over_ranks(self._val)
        self.log_dict(metrics | {"val/distinct_bigrams": distinct_bigrams(texts)})
        self._val, self._val_texts = Means(), []

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
