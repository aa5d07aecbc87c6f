"""``env=preference``: responses compared by a model on disk, ours or any sequence classifier."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from datamodules.environments.preference import PreferenceComparisonEnv
from rlmodules.reward_models import files, serving
from rlmodules.reward_models.pairwise import PairwiseRewardModel


def load_preference_model(path: str, device: str | None = None) -> Any:
    """What ``PreferenceComparisonEnv`` takes as its preference model.

    Args:
        path: folder of a ``PairwiseRewardModel``, which then has both responses before its eyes;
            or whatever ``reward=model`` takes.
        device: default: a GPU where there is one.

    Raises:
        ValueError: there is no such model.
    """
    settings = files.settings_of(Path(path))
    if settings is None or settings["class"] != PairwiseRewardModel.__name__:
        return serving.model(path, device=device)
    model = PairwiseRewardModel.from_pretrained(path)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def preference_env(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    preference_model: Any = None,
    human_feedback_fn: Callable[[str, str, str], Any] | None = None,
    max_length: int = 512,
    stop_sequences: Sequence[str] | None = None,
    temperature: float = 1.0,
) -> PreferenceComparisonEnv:
    """``PreferenceComparisonEnv``, whose preference model may be named by its path."""
    if isinstance(preference_model, str):
        preference_model = load_preference_model(preference_model)
    return PreferenceComparisonEnv(
        tokenizer,
        prompts,
        preference_model,
        human_feedback_fn,
        max_length,
        stop_sequences,
        temperature,
    )
