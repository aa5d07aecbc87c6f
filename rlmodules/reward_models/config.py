"""The settings of reward models."""

from dataclasses import dataclass, replace

from rlmodules.algorithms.offline import require_offline
from rlmodules.checks import require
from rlmodules.models import LoraConfig, ModelConfig

POOLING = ("last", "mean", "cls")


@dataclass
class RewardModelConfig:
    """Settings of reward models; the Python API and the schema of ``algo=reward`` alike."""

    model_name: str = "bert-base-uncased"
    """Hub id, local folder, ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``."""
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
    learning_rate: float = 1e-4
    """Peak, of AdamW."""
    warmup_steps: int = 100
    """Optimizer steps in which the learning rate rises; at most a tenth of all are taken."""
    gradient_accumulation_steps: int = 1
    """Backward passes an optimizer step."""

    batch_size: int = 8
    """Pairs (or scored responses) a backward pass, over all processes."""
    num_epochs: int = 1
    """Passes over the data."""
    max_length: int = 512
    """Most tokens of prompt and response; the response is cut on the right."""
    max_prompt_length: int = 256
    """Most tokens of the prompt; it is cut on the left."""
    label_smoothing: float = 0.0
    """Probability that a pair's label is wrong, in [0, 0.5)."""
    center_rewards_coefficient: float = 0.0
    """Weight of a loss that keeps rewards around 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    eval_every: int = 100
    """Optimizer steps between evaluations on held-out data; the end is always one."""
    save_every: int = 500
    """Optimizer steps between checkpoints; the end is always one."""
    lr_scheduler_type: str = "linear"
    """After the warm-up: linear, cosine, constant or constant_with_warmup."""
    weight_decay: float = 0.0
    """Of AdamW."""
    device: str | None = None
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes what there is."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        require_offline(self)
        require(self, ("pooling_strategy",), lambda x: x in POOLING, f"one of {POOLING}")
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
