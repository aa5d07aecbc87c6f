"""Settings that many algorithms have; each algorithm's own stand beside it.

A subclass declares a field again where its default is another.
"""

from dataclasses import dataclass, field

from datamodules.checks import require_seed, require_types
from datamodules.text.encoding import Limits
from rlmodules.checks import device_options, require, require_known
from rlmodules.functional import CORRECTIONS
from rlmodules.optimizers.config import OptimizerConfig

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass
class TrainingConfig:
    """Settings of every algorithm."""

    model_name: str = "google/gemma-2-2b"
    """Hub id, local folder, ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``."""
    learning_rate: float = 1e-5
    """Of the optimizer, at its peak."""
    lr_scheduler_type: str = "constant"
    """After the warm-up: linear, cosine, constant or constant_with_warmup."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Which one, and what else it is told."""
    gradient_accumulation_steps: int = 1
    """Backward passes an optimizer step."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    weight_decay: float = 0.0
    """Of the optimizer: by this share of the learning rate weights shrink a step; a value head has
    none."""
    device: str | None = None
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes what there is."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        self.optimizer = OptimizerConfig.of(self.optimizer)
        require_types(self, infinite=("max_grad_norm",))
        require_known(self, {"lr_scheduler_type": SCHEDULES})
        require_seed("algo.seed", self.seed)
        device_options(self.device)
        require(self, ("gradient_accumulation_steps",), lambda x: x >= 1, "at least 1")
        require(self, ("learning_rate", "max_grad_norm"), lambda x: x > 0, "positive")
        require(self, ("weight_decay",), lambda x: x >= 0, "0 or more")


@dataclass
class OnlineConfig(TrainingConfig):
    """Settings of algorithms that learn from their own episodes."""

    batch_size: int = 16
    """Episodes an iteration, over all processes."""
    mini_batch_size: int = 4
    """Episodes a backward pass, over all processes."""
    max_new_tokens: int = 128
    """Longest response, in tokens (a turn, where there are several)."""
    temperature: float = 1.0
    """Sampling temperature; it is part of the policy that is trained."""
    top_p: float = 1.0
    """Nucleus sampling. Below 1, ratios are biased by the mass that is cut (rollout/cut_mass)."""
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 for all. Biases ratios as top_p does."""
    num_iterations: int = 100
    """Iterations: rollout, then updates."""
    save_every: int = 10
    """Iterations between checkpoints."""
    sampler_is: str = "none"
    """Weigh what each token teaches by how much likelier the policy makes it than what drew it did:
    none, token, or sequence (the product over the episode). For sampler=vllm; see docs/vllm.md."""
    sampler_is_cap: float = 3.0
    """Largest such weight (``vllm_importance_sampling_clip_max`` in TRL)."""
    eval_every: int = 5
    """Iterations between evaluations on held-out prompts; the end is always one."""
    warmup_steps: int = 0
    """Optimizer steps in which the learning rate rises to its peak."""
    warmup_ratio: float = 0.0
    """The same as a share of all optimizer steps; one of the two is 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        window = self.mini_batch_size * self.gradient_accumulation_steps
        require(self, ("batch_size", "mini_batch_size"), lambda x: x >= 1, "at least 1")
        if self.batch_size % window:
            raise ValueError(
                f"algo.batch_size={self.batch_size} must be a multiple of mini_batch_size x"
                f" gradient_accumulation_steps = {self.mini_batch_size} x"
                f" {self.gradient_accumulation_steps}"
            )
        if self.temperature <= 0:
            raise ValueError(
                f"algo.temperature={self.temperature} must be positive: online algorithms need a"
                " policy that explores"
            )
        at_least_1 = ("max_new_tokens", "num_iterations", "save_every", "eval_every")
        require(self, at_least_1, lambda x: x >= 1, "at least 1")
        require(self, ("top_k",), lambda x: x >= 0, "0 or more")
        require(self, ("top_p",), lambda x: 0 < x <= 1, "above 0 and at most 1")
        require(self, ("warmup_steps",), lambda x: x >= 0, "0 or more")
        require(self, ("warmup_ratio",), lambda x: 0 <= x <= 1, "between 0 and 1")
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"algo.warmup_steps={self.warmup_steps} and algo.warmup_ratio={self.warmup_ratio}"
                " say the same twice: set one of them"
            )
        if self.lr_scheduler_type == "constant":
            what = "0, as algo.lr_scheduler_type=constant has no warm-up (constant_with_warmup has)"
            require(self, ("warmup_steps", "warmup_ratio"), lambda x: x == 0, what)
        require_known(self, {"sampler_is": CORRECTIONS})
        require(self, ("sampler_is_cap",), lambda x: x > 0, "positive")

    @property
    def judges_ends(self) -> str | None:
        """The option that has responses judged by whether they ended; None where none does."""
        return None


@dataclass
class OfflineConfig(TrainingConfig):
    """Settings of algorithms that learn from a fixed set of texts."""

    batch_size: int = 8
    """Examples (pairs, scored responses, demonstrations) a backward pass, over all processes."""
    num_epochs: int = 1
    """Passes over the data."""
    max_length: int = 512
    """Most tokens of prompt and response; the response is cut on the right."""
    eval_every: int = 100
    """Optimizer steps between evaluations on held-out data; the end is always one."""
    save_every: int = 500
    """Optimizer steps between checkpoints; the end is always one."""
    lr_scheduler_type: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_1 = ("batch_size", "num_epochs", "eval_every", "save_every")
        require(self, at_least_1, lambda x: x >= 1, "at least 1")
        require(self, ("max_length",), lambda x: x >= 2, "2 or more")


@dataclass
class PreferenceConfig(OfflineConfig):
    """Settings of algorithms that learn from preferences."""

    max_prompt_length: int = 256
    """Most tokens of the prompt; it is cut on the left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            Limits(self.max_length, self.max_prompt_length)
        except ValueError as error:
            raise ValueError(f"algo.{error}") from None
