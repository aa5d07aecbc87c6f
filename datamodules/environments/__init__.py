"""Environments of online algorithms."""

from datamodules.environments.base import Environment, Observation, StepResult, Trajectory
from datamodules.environments.multi_objective import MultiObjectiveRewardEnv
from datamodules.environments.text import TextGenerationEnv

__all__ = [
    "Environment",
    "MultiObjectiveRewardEnv",
    "Observation",
    "StepResult",
    "TextGenerationEnv",
    "Trajectory",
]
