"""Models: loading, LoRA, the embedded defaults, and the heads that algorithms add."""

from rlmodules.models.adapters import LoraConfig, add_lora
from rlmodules.models.embedded import EMBEDDED, TINY, embedded_model_dir
from rlmodules.models.heads import ValueHead, backbone, hidden_states, projection
from rlmodules.models.loading import (
    ModelConfig,
    load_backbone,
    load_model,
    load_tokenizer,
    prepare_given,
    resolve_precision,
)
from rlmodules.models.modes import disable_dropout
from rlmodules.models.reference import Reference
from rlmodules.models.scoring import PolicyModel, PPOModel, TokenScores
from rlmodules.models.teacher import Teacher
from rlmodules.quiet import ignore_remarks

ignore_remarks()
