"""Settings that many algorithms have; each algorithm's own stand beside it.

A subclass declares a field again where its default is another.
"""

from dataclasses import dataclass

from datamodules.checks import require_seed, require_types
from datamodules.text.encoding import Limits
from rlmodules.checks import device_options, require, require_known

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass
class TrainingConfig:
    """Settings of every algorithm."""

    model_name: str = "google/gemma-2-2b"
    """Hub id, local folder, ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``."""
    learning_rate: float = 1e-5
    """Of AdamW, at its peak."""
    gradient_accumulation_steps: int = 1
    """Backward passes an optimizer step."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    weight_decay: float = 0.0
    """Of AdamW; a value head has none."""
    device: str | None = None
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes what there is."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        require_types(self, infinite=("max_grad_norm",))
        require_seed("algo.seed", self.seed)
        device_options(self.device)
        require(self, ("gradient_accumulation_steps",), lambda x: x >= 1, "at least 1")
        require(self, ("learning_rate", "max_grad_norm"), lambda x: x > 0, "positive")
        require(self, ("weight_decay",), lambda x: x >= 0, "0 or more")


@dataclass
class OfflineConfig(TrainingConfig):
    """Settings of algorithms that learn from a fixed set of preferences."""

    batch_size: int = 8
    """Pairs (or scored responses) a backward pass, over all processes."""
    num_epochs: int = 1
    """Passes over the data."""
    max_length: int = 512
    """Most tokens of prompt and response; the response is cut on the right."""
    max_prompt_length: int = 256
    """Most tokens of the prompt; it is cut on the left."""
    eval_every: int = 100
    """Optimizer steps between evaluations on held-out data; the end is always one."""
    save_every: int = 500
    """Optimizer steps between checkpoints; the end is always one."""
    lr_scheduler_type: str = "linear"
    """After the warm-up: linear, cosine, constant or constant_with_warmup."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_1 = ("batch_size", "num_epochs", "eval_every", "save_every")
        require(self, at_least_1, lambda x: x >= 1, "at least 1")
        require_known(self, {"lr_scheduler_type": SCHEDULES})
        try:
            Limits(self.max_length, self.max_prompt_length)
        except ValueError as error:
            raise ValueError(f"algo.{error}") from None
