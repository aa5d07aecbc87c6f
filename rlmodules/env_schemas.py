"""Schemas of ``conf/env``: what a config can say to an environment."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class EnvSchema:
    """Arguments that every environment takes (``datamodules.environments.make_environment``)."""

    _target_: str = MISSING
    _partial_: bool = True
    max_length: int | None = None
    stop_sequences: list[str] | None = None
    on_error: str = "raise"
    timeout_s: float | None = None
    _convert_: str = "all"


@dataclass
class TextEnvSchema(EnvSchema):
    """``env=text``."""

    _target_: str = "datamodules.TextGenerationEnv"
    max_length: int = 512
    stop_sequences: list[str] = field(default_factory=list)
    temperature: float = 1.0
    reward_fn: Any = MISSING


@dataclass
class MathEnvSchema(EnvSchema):
    """``env=math`` and ``env=gsm8k``."""

    _target_: str = "datamodules.MathEnv"
    max_length: int = 512
    difficulty: int | None = None
    num_problems: int | None = None
    num_held_out: int = 200
    seed: int = 0
    path: str | None = None
    eval_path: str | None = None
    reasoning: bool = False
    chat: bool | None = False
    reward_weights: dict[str, float] | None = None
    temperature: float = 1.0


@dataclass
class CodeEnvSchema(EnvSchema):
    """``env=code``."""

    _target_: str = "datamodules.CodeGenerationEnv"
    max_length: int = 1024
    path: str | None = None
    eval_path: str | None = None
    heldout: float = 0.25
    sandbox: str = "auto"
    time_limit_s: float = 5.0
    memory_mb: int = 512
    reward_weights: dict[str, float] | None = None
    temperature: float = 1.0


@dataclass
class PreferenceEnvSchema:
    """``env=preference``. It scores whole groups, so an episode has no limit of its own."""

    _target_: str = "rlmodules.reward_models.serving.preference_env"
    _partial_: bool = True
    max_length: int = 512
    stop_sequences: list[str] = field(default_factory=list)
    temperature: float = 1.0
    preference_model: Any = None
    human_feedback_fn: Any = None
    _convert_: str = "all"


@dataclass
class CollectPreferencesSchema:
    """``task=collect_preferences``."""

    _target_: str = "rlmodules.tasks.collect_preferences.collect_preferences"
    _partial_: bool = True
    out: str = MISSING
    num_generations: int = 8
    num_prompts: int | None = None
    batch_size: int = MISSING
    max_pairs: int = 1
    min_gap: float = 0.0
    truncated: str = "rejected"


@dataclass
class ToolEnvSchema(EnvSchema):
    """What environments of several turns with tools take."""

    max_length: int | None = 1024
    difficulty: int = MISSING
    num_problems: int = 1000
    num_held_out: int = 200
    seed: int = 0
    demonstrations: int = MISSING
    max_turns: int = 4
    tool_bonus: float = 0.0
    error_penalty: float = 0.0


@dataclass
class CalculatorEnvSchema(ToolEnvSchema):
    """``env=calculator``."""

    _target_: str = "datamodules.environments.calculator.CalculatorEnv"
    difficulty: int = 2
    demonstrations: int = 3


@dataclass
class BookingEnvSchema(ToolEnvSchema):
    """``env=booking``."""

    _target_: str = "datamodules.environments.booking.BookingEnv"
    difficulty: int = 1
    demonstrations: int = 1


@dataclass
class ReasoningGymSchema(EnvSchema):
    """``env=reasoning_gym``."""

    _target_: str = "datamodules.environments.reasoning.ReasoningGymEnv"
    task: Any = "leg_counting"
    num_problems: int = 1000
    num_held_out: int = 200
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    answer_format: str = "tag"
    instruction: str | None = None
    temperature: float = 1.0
