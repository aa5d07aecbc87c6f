"""Models: loading, LoRA, the embedded defaults, and the heads that algorithms add."""

from rlmodules.models.embedded import EMBEDDED, TINY, embedded_model_dir
from rlmodules.models.heads import PPOModel, ValueHead, backbone, hidden_states, projection
from rlmodules.models.loading import (
    LoraConfig,
    ModelConfig,
    load_model,
    load_tokenizer,
    resolve_precision,
)

__all__ = [
    "EMBEDDED",
    "TINY",
    "LoraConfig",
    "ModelConfig",
    "PPOModel",
    "ValueHead",
    "backbone",
    "embedded_model_dir",
    "hidden_states",
    "load_model",
    "load_tokenizer",
    "projection",
    "resolve_precision",
]
