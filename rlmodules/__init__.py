"""Reinforcement learning and preference training of language models, as Lightning modules."""

import importlib
import warnings
from types import ModuleType

from rlmodules.algorithms.dpo import DPO, DPOConfig
from rlmodules.algorithms.grpo import GRPO, GRPOConfig
from rlmodules.algorithms.orpo import ORPO, ORPOConfig
from rlmodules.algorithms.ppo import PPO, AdaptiveKLController, PPOConfig
from rlmodules.forward_backward import AsyncTrainingClient, ForwardBackwardPipeline
from rlmodules.models import LoraConfig, ModelConfig, PPOModel, ValueHead
from rlmodules.preference_trainers import DPOTrainer, ORPOTrainer, RewardModelTrainer
from rlmodules.reward_models.config import RewardModelConfig
from rlmodules.reward_models.multi_objective import MultiObjectiveConfig, MultiObjectiveRewardModel
from rlmodules.reward_models.pairwise import PairwiseRewardModel
from rlmodules.reward_models.scalar import RewardModel
from rlmodules.sampling.choose import SamplingParams
from rlmodules.sampling.decoding import sample
from rlmodules.trainers import GRPOTrainer, PPOTrainer

__all__ = [
    "DPO",
    "GRPO",
    "ORPO",
    "PPO",
    "AdaptiveKLController",
    "AsyncTrainingClient",
    "DPOConfig",
    "DPOTrainer",
    "ForwardBackwardPipeline",
    "GRPOConfig",
    "GRPOTrainer",
    "LoraConfig",
    "ModelConfig",
    "MultiObjectiveConfig",
    "MultiObjectiveRewardModel",
    "ORPOConfig",
    "ORPOTrainer",
    "PPOConfig",
    "PPOModel",
    "PPOTrainer",
    "PairwiseRewardModel",
    "RewardModel",
    "RewardModelConfig",
    "RewardModelTrainer",
    "SamplingParams",
    "ValueHead",
    "sample",
]

_MOVED = {
    "collect": "rlmodules.tasks.collect_preferences",
    "evaluate": "rlmodules.tasks.evaluate",
    "preference_model": "rlmodules.reward_models.preference_model",
    "reward_function": "rlmodules.reward_models.serving",
}
"""Modules that a ``_target_`` of an earlier version names."""


def __getattr__(name: str) -> ModuleType:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"rlmodules.{name} is now {_MOVED[name]}", FutureWarning, stacklevel=2)
    return importlib.import_module(_MOVED[name])
