"""Data: environments, rollouts and prompts. Never imports ``rlmodules``."""

from datamodules.environments import (
    Environment,
    Observation,
    StepResult,
    TextGenerationEnv,
    Trajectory,
)
from datamodules.experience import Experience, Minibatch, TokenBatch
from datamodules.preference_data import PreferenceDataModule
from datamodules.preferences import PreferenceBatch, PreferenceDataset
from datamodules.prompts import Prompt, load_prompts
from datamodules.rewards import RewardError, RewardFunction
from datamodules.rollouts import RolloutDataModule

__all__ = [
    "Environment",
    "Experience",
    "Minibatch",
    "Observation",
    "PreferenceBatch",
    "PreferenceDataModule",
    "PreferenceDataset",
    "Prompt",
    "RewardError",
    "RewardFunction",
    "RolloutDataModule",
    "StepResult",
    "TextGenerationEnv",
    "TokenBatch",
    "Trajectory",
    "load_prompts",
]
