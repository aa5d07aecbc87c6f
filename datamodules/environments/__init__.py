"""Environments of online algorithms."""

from datamodules.environments.adapters import make_environment
from datamodules.environments.base import Environment
from datamodules.environments.code import CodeGenerationEnv, create_code_generation_env
from datamodules.environments.maths import MathEnv, create_math_problem_env
from datamodules.environments.multi_objective import MultiObjectiveRewardEnv
from datamodules.environments.preference import PreferenceComparisonEnv
from datamodules.environments.text import TextGenerationEnv
from datamodules.types import Observation, StepResult, Trajectory
