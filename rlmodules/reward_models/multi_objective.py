"""A reward model with a score for each of several objectives, combined by weights."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from datamodules.preferences.dataset import Preference, PreferenceBatch, response_lengths
from rlmodules.checks import require
from rlmodules.functional import multi_objective_loss
from rlmodules.models.modes import evaluating
from rlmodules.reward_models.config import RewardModelConfig
from rlmodules.reward_models.scalar import RewardModel


@dataclass
class MultiObjectiveConfig(RewardModelConfig):
    """Settings of a multi-objective reward model; one label an objective."""

    objectives: list[str] = field(default_factory=lambda: ["helpfulness", "safety", "honesty"])
    """Names of the objectives: columns of the data that hold their scores."""
    objective_weights: list[float] | None = None
    """How much each counts in the combined reward; None: alike, adding up to 1. What counts against
    the reward has a negative one. All are learned alike."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.objectives = list(self.objectives)
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"algo.objectives={names} must hold a name for each objective")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"algo.objectives={names} names {twice} more than once")
        if self.num_labels not in (1, len(self.objectives)):
            raise ValueError(
                f"algo.num_labels={self.num_labels}, and algo.objectives names"
                f" {len(self.objectives)}: leave num_labels out, there is one an objective"
            )
        self.num_labels = len(self.objectives)
        unread = ("label_smoothing", "center_rewards_coefficient")
        require(self, unread, lambda x: x == 0, "0: they belong to pairs, and these are scores")
        if self.objective_weights is None:
            self.objective_weights = [1 / self.num_labels] * self.num_labels
        if len(self.objective_weights) != self.num_labels:
            raise ValueError(
                f"algo.objective_weights has {len(self.objective_weights)} numbers for"
                f" {self.num_labels} objectives"
            )
        sizes = [abs(weight) for weight in self.objective_weights]
        if not all(map(math.isfinite, sizes)) or not any(sizes):
            raise ValueError(
                f"algo.objective_weights={self.objective_weights} must be finite, and not all 0"
            )


class MultiObjectiveRewardModel(RewardModel):
    """Arguments as of ``RewardModel``, and

    Args:
        num_objectives: how many; default: as many as ``config.objectives`` names.
        objective_weights: how much each counts; default: the config's.
    """

    config_class = MultiObjectiveConfig

    def __init__(
        self,
        config: RewardModelConfig | dict[str, Any],
        model_config: Any = None,
        *,
        num_objectives: int | None = None,
        objective_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        config = self._with_objectives(config, num_objectives, objective_weights)
        super().__init__(config, model_config, **kwargs)
        self.num_objectives = config.num_labels
        weights = torch.tensor(config.objective_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    @property
    def objectives(self) -> list[str]:
        """Their names, in metrics and reports."""
        return self.config.objectives

    def setup(self, stage: str) -> None:
        """
        Raises:
            ValueError: the data's scores are of other objectives.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        named = getattr(data, "objectives", None)
        if named is not None and list(named) != self.objectives:
            raise ValueError(
                f"data.objectives={list(named)} are not algo.objectives={self.objectives}: name the"
                " same columns, in the same order, or set data.objectives alone"
            )
        for option in ("train_dataset", "eval_dataset"):
            rows = getattr(data, option, None)
            targets = rows[0].targets if rows is not None and len(rows) else None
            if rows is not None and (targets is None or len(targets) != self.num_objectives):
                found = "pairs" if targets is None else f"{len(targets)} scores a row"
                raise ValueError(
                    f"the {option} has {found}, and algo.objectives={self.objectives} names"
                    f" {self.num_objectives}: name the columns of scores in data.objectives"
                )

    @classmethod
    def _with_objectives(
        cls, config: Any, count: int | None, weights: Sequence[float] | None
    ) -> MultiObjectiveConfig:
        """A config of our own; the one given stays as it is."""
        if isinstance(config, dict):
            config = cls.config_class(**config)
        if not isinstance(config, MultiObjectiveConfig):
            names = [f"objective_{i}" for i in range(3 if count is None else count)]
            config = MultiObjectiveConfig(**asdict(config) | {"objectives": names})
        elif count is not None and count != len(config.objectives):
            raise ValueError(
                f"num_objectives={count}, but the config names {len(config.objectives)}"
            )
        return config if weights is None else replace(config, objective_weights=list(weights))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_all_objectives: bool = False,
    ) -> dict[str, Tensor]:
        """``combined_reward`` [B, 1], ``pooled_output`` [B, H], and ``rewards``: [B, K] with
        ``return_all_objectives``, else the combined one."""
        outputs = super().forward(input_ids, attention_mask)
        combined = self.combine(outputs["rewards"])[:, None]
        if not return_all_objectives:
            outputs["rewards"] = combined
        return outputs | {"combined_reward": combined}

    def combine(self, rewards_BK: Tensor) -> Tensor:
        """[B, K] -> [B], weighted."""
        return (rewards_BK * self.weights).sum(-1)

    def reward(self, pooled: Tensor) -> Tensor:
        return self.combine(self.scores(pooled))

    def predict_objectives(self, ids: Sequence[Sequence[int]], batch_size: int = 8) -> Tensor:
        """[N, K], the score of each tokenized text in each objective."""
        return self.in_batches(self.scores, ids, batch_size)

    def compute_multi_objective_loss(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        target_rewards: Tensor,
        objective_mask: Tensor | Sequence[bool] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared errors, see ``functional.multi_objective_loss``.

        Args:
            target_rewards: [B, K]; NaN where a target is missing.
            objective_mask: [K], which objectives to train, or [B, K], which targets; default: all.

        Returns:
            The loss, and each trained objective's own as ``<name>_loss``. A model whose config
            names none calls them ``objective_0`` and so on.
        """
        rewards = super().forward(input_ids, attention_mask)["rewards"]
        mask = ~target_rewards.isnan()
        if objective_mask is not None:
            mask &= torch.as_tensor(objective_mask, device=mask.device).bool()
        loss, losses = self._loss(rewards, target_rewards, mask, mask.any(1).sum().clamp(min=1))
        named = zip(self.objectives, losses, mask.any(0), strict=True)
        return loss, {f"{name}_loss": own for name, own, trained in named if trained}

    def judge(self, examples: Sequence[Preference]) -> dict[str, Tensor]:
        """``scores`` and ``targets`` [N, K] and ``lengths`` [N, 1], on the CPU."""
        found = []
        with evaluating(self), self.inference():
            for start in range(0, len(examples), self.config.batch_size):
                groups = [e.sequences for e in examples[start : start + self.config.batch_size]]
                found.append(self.scores(self.pooled(self.lay_out_texts(groups))))
        return {
            "scores": torch.cat(found).float().cpu(),
            "targets": torch.stack([e.targets for e in examples]),
            "lengths": response_lengths(examples),
        }

    def losses(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        rewards = self.scores(self.pooled(self.lay_out(batch)))
        targets = batch.targets.to(rewards.device)
        mask = ~targets.isnan()
        loss, errors = self._loss(rewards, targets, mask, batch.totals["num_examples"])
        seen = self.elements(batch)
        metrics = zip((f"mse_{name}" for name in self.objectives), errors.detach(), strict=True)
        return loss, {name: error for name, error in metrics if seen[name]}

    def elements(self, batch: PreferenceBatch) -> dict[str, int]:
        """Scores may be missing."""
        known = (~batch.targets.isnan()).sum(0).tolist()
        return {f"mse_{name}": n for name, n in zip(self.objectives, known, strict=True)}

    def _loss(
        self, rewards: Tensor, targets: Tensor, mask: Tensor, num_rows: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        return multi_objective_loss(
            rewards_BK=rewards,
            targets_BK=targets.to(rewards.dtype),
            mask_BK=mask,
            num_rows=num_rows,
        )
