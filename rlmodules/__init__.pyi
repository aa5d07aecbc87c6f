"""The public names of ``rlmodules``: read by type checkers and by its lazy ``__init__``."""

from .algorithms.dpo import DPO, DPOConfig
from .algorithms.grpo import GRPO, GRPOConfig
from .algorithms.orpo import ORPO, ORPOConfig
from .algorithms.ppo import PPO, AdaptiveKLController, PPOConfig
from .forward_backward import AsyncTrainingClient, ForwardBackwardPipeline
from .models import LoraConfig, ModelConfig, PPOModel, ValueHead
from .reward_models.config import RewardModelConfig
from .reward_models.multi_objective import MultiObjectiveConfig, MultiObjectiveRewardModel
from .reward_models.pairwise import PairwiseRewardModel
from .reward_models.scalar import RewardModel
from .sampling.choose import SamplingParams
from .sampling.decoding import sample
from .trainers import DPOTrainer, GRPOTrainer, ORPOTrainer, PPOTrainer, RewardModelTrainer

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
