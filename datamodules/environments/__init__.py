"""Environments of online algorithms."""

from datamodules.environments.base import Environment, Observation, StepResult, Trajectory
from datamodules.environments.text import TextGenerationEnv

__all__ = ["Environment", "Observation", "StepResult", "TextGenerationEnv", "Trajectory"]
