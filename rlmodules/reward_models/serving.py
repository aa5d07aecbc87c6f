"""``reward=model``: a reward model, of ours or any sequence classifier, as a reward function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules import rewards
from datamodules.text.encoding import Limits, encode, render
from datamodules.text.prompts import Prompt
from rlmodules.reward_models import files
from rlmodules.reward_models.multi_objective import MultiObjectiveRewardModel
from rlmodules.reward_models.pairwise import PairwiseRewardModel
from rlmodules.reward_models.scalar import RewardModel

CLASSES = {c.__name__: c for c in (RewardModel, PairwiseRewardModel, MultiObjectiveRewardModel)}


def model(path: str, **options: Any) -> rewards.RewardFunction:
    """Reward by the model in a folder that ``RewardModel.export`` wrote, of any class; else by
    ``datamodules.rewards.model``, which takes the same options."""
    settings = files.settings_of(Path(path))
    if settings is None:
        return rewards.model(path, **options)
    return _ours(CLASSES[settings["class"]], path, **options)


def _ours(
    cls: type,
    path: str,
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    label: int | None = None,
    device: str | None = None,
    timeout_s: float | None = None,
) -> rewards.RewardFunction:
    if label is not None:
        raise ValueError(f"reward.label={label}: a {cls.__name__} has one reward; leave it at null")
    scorer = cls.from_pretrained(path)
    scorer.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    longest = max_length or scorer.config.max_length
    limits = Limits(longest, longest - 1)

    def score(
        prompts: Sequence[str],
        responses: Sequence[str],
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> list[float]:
        texts = []
        for prompt, response, meta in zip(
            prompts, responses, metadata or [{}] * len(prompts), strict=True
        ):
            if "messages" in meta:
                answer = [{"role": "assistant", "content": response}]
                texts.append(render(scorer.tokenizer, Prompt(meta["messages"]), answer))
            else:
                texts.append(render(scorer.tokenizer, Prompt(prompt), response))
        pairs = encode(scorer.tokenizer, texts, limits, close=False)
        return scorer.predict_ids([start + answer for start, answer in pairs], batch_size)

    return rewards.RewardFunction(score, timeout_s=timeout_s, name=f"model {path}")
