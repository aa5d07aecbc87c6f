"""The settings of reward models."""

from dataclasses import dataclass, replace

from rlmodules.algorithms.config import PreferenceConfig
from rlmodules.checks import require, require_known
from rlmodules.models import LoraConfig, ModelConfig

POOLING = ("last", "mean", "cls")


@dataclass
class RewardModelConfig(PreferenceConfig):
    """Settings of reward models; the Python API and the schema of ``algo=reward`` alike."""

    model_name: str = "bert-base-uncased"
    learning_rate: float = 1e-4
    num_labels: int = 1
    """Scores a text; pairs need exactly 1."""
    pooling_strategy: str = "last"
    """Which hidden state stands for a text: its ``last`` token's, its first's (``cls``), their
    ``mean``."""
    dropout_prob: float = 0.1
    """Dropout before the head, in training."""
    temperature: float = 1.0
    """Scores are divided by this."""
    use_lora: bool = False
    """Train adapters on all linear layers instead of all weights (or set ``model.lora.r``)."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: int = 16
    """The adapters' output is scaled by alpha / rank."""
    lora_dropout: float = 0.1
    """Dropout on the adapters' input."""
    warmup_steps: int = 100
    """Optimizer steps in which the learning rate rises; at most a tenth of all are taken."""
    label_smoothing: float = 0.0
    """Probability that a pair's label is wrong, in [0, 0.5)."""
    center_rewards_coefficient: float = 0.0
    """Weight of a loss that keeps rewards around 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, {"pooling_strategy": POOLING})
        require(self, ("num_labels", "lora_rank", "lora_alpha"), lambda x: x >= 1, "at least 1")
        require(self, ("dropout_prob", "lora_dropout"), lambda x: 0 <= x < 1, "in [0, 1)")
        require(self, ("label_smoothing",), lambda x: 0 <= x < 0.5, "in [0, 0.5)")
        require(self, ("temperature",), lambda x: x > 0, "positive")
        not_negative = ("center_rewards_coefficient", "warmup_steps")
        require(self, not_negative, lambda x: x >= 0, "0 or more")


def with_lora(model_config: ModelConfig, c: RewardModelConfig) -> ModelConfig:
    """``model_config`` with the adapters that the algorithm's own settings ask for."""
    if not c.use_lora:
        return model_config
    if model_config.lora.r:
        raise ValueError(
            f"algo.use_lora and model.lora.r={model_config.lora.r} both ask for adapters:"
            " set one of them"
        )
    lora = LoraConfig(r=c.lora_rank, alpha=c.lora_alpha, dropout=c.lora_dropout)
    return replace(model_config, lora=lora)
