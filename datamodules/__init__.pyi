"""The public names of ``datamodules``: read by type checkers and by its lazy ``__init__``."""

from .environments import (
    CodeGenerationEnv,
    Environment,
    MathEnv,
    MultiObjectiveRewardEnv,
    PreferenceComparisonEnv,
    TextGenerationEnv,
    create_code_generation_env,
    create_math_problem_env,
    make_environment,
)
from .experience import Experience, Minibatch, TokenBatch
from .preferences.datamodule import PreferenceDataModule
from .preferences.dataset import PreferenceBatch, PreferenceDataset
from .rewards.functions import RewardError, RewardFunction
from .rollouts.datamodule import RolloutDataModule
from .text.prompts import Prompt, load_prompts
from .types import Observation, StepResult, Trajectory

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
