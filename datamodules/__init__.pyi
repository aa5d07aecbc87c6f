"""The public names of ``datamodules``: read by type checkers and by its lazy ``__init__``."""

from .demonstrations.datamodule import DemonstrationDataModule as DemonstrationDataModule
from .demonstrations.dataset import DemonstrationDataset as DemonstrationDataset
from .environments import CodeGenerationEnv as CodeGenerationEnv
from .environments import Environment as Environment
from .environments import MathEnv as MathEnv
from .environments import MultiObjectiveRewardEnv as MultiObjectiveRewardEnv
from .environments import PreferenceComparisonEnv as PreferenceComparisonEnv
from .environments import TextGenerationEnv as TextGenerationEnv
from .environments import create_code_generation_env as create_code_generation_env
from .environments import create_math_problem_env as create_math_problem_env
from .environments import make_environment as make_environment
from .experience import Experience as Experience
from .experience import Minibatch as Minibatch
from .experience import TokenBatch as TokenBatch
from .preferences.datamodule import PreferenceDataModule as PreferenceDataModule
from .preferences.dataset import PreferenceBatch as PreferenceBatch
from .preferences.dataset import PreferenceDataset as PreferenceDataset
from .rewards.answers import is_correct as is_correct
from .rewards.functions import RewardError as RewardError
from .rewards.functions import RewardFunction as RewardFunction
from .rollouts.datamodule import RolloutDataModule as RolloutDataModule
from .text.prompt_files import load_prompts as load_prompts
from .text.prompts import Prompt as Prompt
from .types import Observation as Observation
from .types import StepResult as StepResult
from .types import Trajectory as Trajectory
