"""What held-out episodes were like: means, repetition, and how many problems were solved."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from datamodules.types import Rollout, Trajectory
from rlmodules.algorithms.means import Means, distinct_bigrams
from rlmodules.functional.statistics import pass_at_k

REPORTED = ("reward_", "logged_")
"""Beginnings of the names of an episode's metrics whose means are reported."""


NAN = float("nan")


def absent(
    known: Mapping[str, Any], kind: str, names: Sequence[str] = ("reward", *REPORTED)
) -> dict[str, float]:
    """NaN for those metrics that were known whose names begin so: where nothing is said of one any
    more, its last value must not stand for it."""
    beginnings = tuple(f"{kind}/{name}" for name in names)
    return {name: NAN for name in known if name.startswith(beginnings)}


class HeldOut:
    """Collects one evaluation; ``metrics`` sums it up over all processes.

    Attributes:
        solved: starting state -> whether its first attempt was right, of the last evaluation.
            Filled by environments whose episodes have the metric ``correct``.
    """

    def __init__(self) -> None:
        self.solved: dict[int, bool] = {}
        self.last: dict[str, float] = {}
        self.clear()

    def clear(self) -> None:
        self.means = Means()
        self.texts: list[str] = []
        self.attempts: dict[int, list[bool]] = {}

    def add(self, rollout: Rollout, tokenizer: Any) -> list[dict[str, Any]]:
        """Note these episodes; returns one row a sample for whoever shows them."""
        rows: list[dict[str, Any]] = []
        evaluation = rollout.evaluation
        divergence = evaluation.kl()
        for i, trajectory in enumerate(rollout.trajectories):
            if trajectory.failed:
                continue
            row: dict[str, Any] = {
                "prompt": trajectory.observations[0].prompt,
                "response": _shown(trajectory, tokenizer),
                "reward": None if trajectory.unscored else trajectory.total_reward,
            }
            length = int(evaluation.mask[i].sum())
            if divergence is not None:
                row["kl"] = divergence[i][evaluation.mask[i]].mean().item()
                self.means.add({"val/kl": row["kl"]}, weight=length)
            self._add_means(trajectory, length)
            if "correct" in trajectory.metrics:
                right = bool(trajectory.metrics["correct"])
                self.attempts.setdefault(rollout.starts[i], []).append(right)
            rows.append(row)
        self.texts += [row["response"] for row in rows]
        return rows

    def _add_means(self, trajectory: Trajectory, length: int) -> None:
        ended = trajectory.finish_reason == "eos"
        parts = {k: v for k, v in trajectory.metrics.items() if k.startswith(REPORTED)}
        parts |= {} if trajectory.unscored else {"reward": trajectory.total_reward}
        self.means.add(
            {
                "val/response_length": length,
                "val/eos_fraction": ended,
                **{f"val/{name}": value for name, value in parts.items()},
            }
        )

    def metrics(self, module: Any) -> dict[str, float]:
        """Everything over all processes; then starts afresh."""
        texts: list[str] = _gathered(module, self.texts)
        attempts: dict[int, list[bool]] = {}
        for some in _gathered(module, [self.attempts]):
            attempts |= some
        self.last = absent(self.last, "val") | module.over_ranks(self.means)
        metrics = dict(self.last)
        metrics["val/distinct_bigrams"] = distinct_bigrams(texts)
        if attempts:
            self.solved = {start: tries[0] for start, tries in sorted(attempts.items())}
            most = max(len(tries) for tries in attempts.values())
            for k in sorted({1, most}):
                whole = [tries for tries in attempts.values() if len(tries) >= k]
                each = [pass_at_k(len(tries), sum(tries), k) for tries in whole]
                metrics[f"val/pass@{k}"] = sum(each) / len(each)
        self.clear()
        return metrics


def _shown(trajectory: Trajectory, tokenizer: Any) -> str:
    """All that followed the prompt: the policy's text, and the environment's between its turns."""
    start = len(trajectory.observations[0].input_ids)
    last = trajectory.observations[-1].input_ids[start:]
    whole = torch.cat([last, trajectory.actions[-1]])
    return tokenizer.decode(whole, skip_special_tokens=True)


def _gathered(module: Any, items: list) -> list:
    """``items`` of all processes, joined."""
    if module.trainer.world_size == 1:
        return items
    parts: list[list] = [[] for _ in range(module.trainer.world_size)]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
