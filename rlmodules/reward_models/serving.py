"""Reward models on disk, ours or any sequence classifier, as what rewards or compares."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules import rewards
from datamodules.environments.base import Options
from datamodules.environments.preference import PreferenceComparisonEnv
from datamodules.rewards.calling import Samples
from datamodules.rewards.devices import follow, place
from datamodules.rewards.functions import Scored
from datamodules.rewards.scorers import BATCH, Classifier, reward_of
from rlmodules.algorithms.offline import require_room
from rlmodules.models.saved_adapters import saved_adapter
from rlmodules.reward_models import files
from rlmodules.reward_models.adapted import load_classifier
from rlmodules.reward_models.multi_objective import MultiObjectiveRewardModel
from rlmodules.reward_models.pairwise import PairwiseRewardModel
from rlmodules.reward_models.scalar import RewardModel

CLASSES = {c.__name__: c for c in (RewardModel, PairwiseRewardModel, MultiObjectiveRewardModel)}


def load(path: str, device: str | None = None) -> RewardModel | None:
    """The model in a folder that ``RewardModel.export`` wrote, of any class; None if there is none.

    Args:
        device: default: that of the process, see ``datamodules.rewards.devices``.
    """
    settings = files.settings_of(Path(path))
    if settings is None:
        return None
    return place(CLASSES[settings["class"]].from_pretrained(path), device)


def model(
    path: str,
    *,
    batch_size: int = BATCH,
    max_length: int | None = None,
    label: int | None = None,
    device: str | None = None,
    timeout_s: float | None = None,
) -> rewards.RewardFunction:
    """``reward=model``: by a model of ours, else by ``datamodules.rewards.model``.

    Args:
        path: folder or hub id of a sequence classifier, or of an adapter with a head.
        batch_size, timeout_s: see ``reward_of``.
        max_length: most tokens of prompt and response; default: as the model was trained. The
            prompt keeps its share of it and is cut on the left, the response on the right.
        label: which of several outputs of a classifier; a model of ours has one reward.
        device: default: that of the process, as the Trainer says; without one its GPU.

    Raises:
        ValueError: there is no such model, or an option does not fit it.
    """
    options = {"batch_size": batch_size, "max_length": max_length, "timeout_s": timeout_s}
    scorer = load(path, device)
    if scorer is None and (saved := saved_adapter(path)) is not None:
        classifier, tokenizer = load_classifier(saved)
        name = f"reward.path={path!r}"
        adapted = Classifier(classifier, tokenizer, label=label, max_length=max_length, name=name)
        adapted = place(adapted, device)
        return reward_of(adapted, batch_size=batch_size, timeout_s=timeout_s, name=f"model {path}")
    if scorer is None:
        return rewards.model(path, label=label, device=device, **options)
    if label is not None:
        kind = type(scorer).__name__
        raise ValueError(f"reward.label={label}: a {kind} has one reward; leave it at null")
    require_room(scorer.positions, max_length or 0, "reward.max_length")
    if isinstance(scorer, MultiObjectiveRewardModel):
        return ObjectivesReward(scorer, name=f"model {path}", **options)
    return reward_of(scorer, name=f"model {path}", **options)


class ObjectivesReward(rewards.RewardFunction):
    """The combined reward of a multi-objective model; each objective is a metric ``reward_NAME``.

    Args:
        scorer: the model.
        batch_size, max_length, timeout_s, name: see ``reward_of``.
    """

    def __init__(
        self,
        scorer: MultiObjectiveRewardModel,
        *,
        batch_size: int = BATCH,
        max_length: int | None = None,
        timeout_s: float | None = None,
        name: str | None = None,
    ) -> None:
        self.scorer = scorer
        objectives = Objectives(scorer)
        whole = reward_of(objectives, batch_size=batch_size, max_length=max_length)
        super().__init__(whole.fn, timeout_s=timeout_s, name=name or type(scorer).__name__)

    def scores(self, samples: Samples) -> Scored:
        """See ``RewardFunction.scores``."""
        rows, _ = self._of_all(samples)
        combined = self.scorer.combine(torch.tensor(rows, device=self.scorer.weights.device))
        found: Scored = []
        for index, (row, reward) in enumerate(zip(rows, combined.tolist(), strict=True)):
            if not math.isfinite(reward):
                raise self._error(f"gave {reward}, which is no finite number", samples, index)
            named = zip(self.scorer.objectives, row, strict=True)
            found.append((reward, {f"reward_{name}": score for name, score in named}))
        return found


class Objectives:
    """A multi-objective model as a ``TextScorer`` whose rewards are lists, a score an objective."""

    def __init__(self, scorer: MultiObjectiveRewardModel) -> None:
        self.scorer = scorer
        self.tokenizer, self.limits = scorer.tokenizer, scorer.limits

    def predict_ids(self, ids: Any, batch_size: int = BATCH) -> list[Any]:
        """[K] of each tokenized text."""
        follow(self.scorer)
        return self.scorer.predict_objectives(ids, batch_size).tolist()


def preference_env(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    preference_model: Any = None,
    human_feedback_fn: Callable[[str, str, str], Any] | None = None,
    **options: Unpack[Options],
) -> PreferenceComparisonEnv:
    """``env=preference``: ``PreferenceComparisonEnv``, whose preference model may be named by its
    path: a ``PairwiseRewardModel``'s folder, which then has both responses before its eyes, or
    whatever ``reward=model`` takes."""
    if isinstance(preference_model, str):
        scorer = load(preference_model)
        preference_model = model(preference_model) if scorer is None else scorer
    return PreferenceComparisonEnv(
        tokenizer, prompts, preference_model, human_feedback_fn, **options
    )
