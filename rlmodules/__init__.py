"""Reinforcement learning and preference training of language models, as Lightning modules."""

from rlmodules.dpo import DPO, DPOConfig
from rlmodules.drawing import SamplingParams
from rlmodules.forward_backward import AsyncTrainingClient, ForwardBackwardPipeline
from rlmodules.grpo import GRPO, GRPOConfig
from rlmodules.models import LoraConfig, ModelConfig, PPOModel, ValueHead
from rlmodules.multi_objective import MultiObjectiveConfig, MultiObjectiveRewardModel
from rlmodules.orpo import ORPO, ORPOConfig
from rlmodules.pairwise import PairwiseRewardModel
from rlmodules.policy import AdaptiveKLController
from rlmodules.ppo import PPO, PPOConfig
from rlmodules.preference_trainers import DPOTrainer, ORPOTrainer, RewardModelTrainer
from rlmodules.reward import RewardModel
from rlmodules.reward_config import RewardModelConfig
from rlmodules.sampling import sample
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
