"""Data: environments, rollouts and prompts. Never imports ``rlmodules``."""

from datamodules.environments import (
    CodeGenerationEnv,
    Environment,
    MathEnv,
    MultiObjectiveRewardEnv,
    Observation,
    PreferenceComparisonEnv,
    StepResult,
    TextGenerationEnv,
    Trajectory,
    create_code_generation_env,
    create_math_problem_env,
    make_environment,
)
from datamodules.preferences.datamodule import PreferenceDataModule
from datamodules.preferences.dataset import PreferenceBatch, PreferenceDataset
from datamodules.rewards.functions import RewardError, RewardFunction
from datamodules.rollouts.datamodule import RolloutDataModule
from datamodules.text.prompts import Prompt, load_prompts
from datamodules.types import Experience, Minibatch, TokenBatch

__all__ = [
    "CodeGenerationEnv",
    "Environment",
    "Experience",
    "MathEnv",
    "Minibatch",
    "MultiObjectiveRewardEnv",
    "Observation",
    "PreferenceBatch",
    "PreferenceComparisonEnv",
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
    "create_code_generation_env",
    "create_math_problem_env",
    "load_prompts",
    "make_environment",
]
