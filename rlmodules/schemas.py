"""Every public config as a schema in Hydra's ConfigStore, so that typos and wrong types fail."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from rlmodules.algorithms.dpo import DPOConfig
from rlmodules.algorithms.grpo import GRPOConfig
from rlmodules.algorithms.orpo import ORPOConfig
from rlmodules.algorithms.ppo import PPOConfig
from rlmodules.checks import device_options
from rlmodules.env_schemas import (
    BookingEnvSchema,
    CalculatorEnvSchema,
    CodeEnvSchema,
    CollectPreferencesSchema,
    MathEnvSchema,
    PreferenceEnvSchema,
    ReasoningGymSchema,
    TextEnvSchema,
)
from rlmodules.models import ModelConfig
from rlmodules.reward_models.config import RewardModelConfig
from rlmodules.reward_models.multi_objective import MultiObjectiveConfig


@dataclass
class RolloutDataSchema:
    """Arguments of ``datamodules.RolloutDataModule``."""

    _target_: str = "datamodules.RolloutDataModule"
    env: Any = MISSING
    prompts: list[Any] | None = None
    path: str | None = None
    eval_prompts: list[Any] | None = None
    eval_path: str | None = None
    eval_size: int = 64
    eval_generations: int = 1
    prompt_column: str | None = None
    split: str = "train"
    chat: bool = False
    batch_size: int = MISSING
    num_generations: int = 1
    max_resamples: int = 0
    mini_batch_size: int = MISSING
    epochs: int = MISSING
    gradient_accumulation_steps: int = MISSING
    eval_batch_size: int = 32
    seed: int = MISSING
    _convert_: str = "all"


@dataclass
class PreferenceDataSchema:
    """Arguments of ``datamodules.PreferenceDataModule``."""

    _target_: str = "datamodules.PreferenceDataModule"
    path: str = MISSING
    eval_path: str | None = None
    eval_size: int = 256
    objectives: Any = None
    split: str = "train"
    eval_split: str = "test"
    on_error: str = "raise"
    max_length: int = MISSING
    max_prompt_length: int = MISSING
    batch_size: int = MISSING
    gradient_accumulation_steps: int = MISSING
    eval_batch_size: int = 8
    seed: int = MISSING
    _convert_: str = "all"


@dataclass
class RewardSchema:
    """Arguments that every reward takes."""

    _target_: str = MISSING
    timeout_s: float | None = 60.0


@dataclass
class FunctionRewardSchema(RewardSchema):
    """``reward=function``."""

    _target_: str = "datamodules.rewards.function"
    path: str = MISSING


@dataclass
class ModelRewardSchema(RewardSchema):
    """``reward=model``."""

    _target_: str = "rlmodules.reward_models.serving.model"
    path: str = MISSING
    batch_size: int = 16
    max_length: int | None = None
    label: int | None = None
    device: str | None = None


REQUIRED = "${required:}"
"""In YAML: has to be given. (``???`` says so too, but leaves the default of a schema in place.)"""

SCHEMAS: dict[str, dict[str, Any]] = {
    "algo": {
        "ppo": PPOConfig,
        "grpo": GRPOConfig,
        "dpo": DPOConfig,
        "orpo": ORPOConfig,
        "reward": RewardModelConfig,
        "multi_objective": MultiObjectiveConfig,
    },
    "model": {"base": ModelConfig},
    "data": {"rollouts": RolloutDataSchema, "preferences": PreferenceDataSchema},
    "env": {
        "text": TextEnvSchema,
        "math": MathEnvSchema,
        "code": CodeEnvSchema,
        "preference": PreferenceEnvSchema,
        "calculator": CalculatorEnvSchema,
        "booking": BookingEnvSchema,
        "reasoning_gym": ReasoningGymSchema,
    },
    "task": {"collect_preferences": CollectPreferencesSchema},
    "reward": {
        "base": RewardSchema,
        "function": FunctionRewardSchema,
        "model": ModelRewardSchema,
    },
}


def register() -> None:
    """Make the schemas known as ``GROUP/schema/NAME``, and the resolvers that YAML uses."""
    store = ConfigStore.instance()
    for group, nodes in SCHEMAS.items():
        for name, node in nodes.items():
            store.store(group=f"{group}/schema", name=name, node=node, package=group)
    for name in ("accelerator", "devices"):
        OmegaConf.register_new_resolver(
            name, lambda device, name=name: device_options(device)[name], replace=True
        )
    OmegaConf.register_new_resolver("required", required, replace=True)
    OmegaConf.register_new_resolver("product", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("heldout", carried_heldout, replace=True)


def required() -> None:
    """
    Raises:
        ValueError: always; ``train.py`` names the value before.
    """
    raise ValueError("a value that has to be given was left open")


def carried_heldout(path: str | None) -> str | None:
    """The held-out file beside a training file that the project carries; None for other files."""
    if path is None or not path.startswith("package:"):
        return None
    return path.replace("_train", "_heldout")
