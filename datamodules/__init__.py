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
from datamodules.experience import Experience, Minibatch, TokenBatch
from datamodules.preference_data import PreferenceDataModule
from datamodules.preferences import PreferenceBatch, PreferenceDataset
from datamodules.prompts import Prompt, load_prompts
from datamodules.rewards import RewardError, RewardFunction
from datamodules.rollouts import RolloutDataModule

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
