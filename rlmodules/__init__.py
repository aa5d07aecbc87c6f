"""Reinforcement learning and preference training of language models, as Lightning modules."""

from rlmodules.models import LoraConfig, ModelConfig, PPOModel, ValueHead
from rlmodules.policy import AdaptiveKLController
from rlmodules.ppo import PPO, PPOConfig
from rlmodules.sampling import SamplingParams, sample
from rlmodules.trainers import PPOTrainer

__all__ = [
    "PPO",
    "AdaptiveKLController",
    "LoraConfig",
    "ModelConfig",
    "PPOConfig",
    "PPOModel",
    "PPOTrainer",
    "SamplingParams",
    "ValueHead",
    "sample",
]
