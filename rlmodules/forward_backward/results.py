"""What the futures of a pipeline come to."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ForwardResult:
    """What a model says of a batch; on the CPU."""

    logprobs: Tensor
    """[B, T], of each token that counts given those before it; zeros elsewhere."""
    mask: Tensor
    """[B, T], True at tokens that count."""
    values: Tensor | None = None
    """[B, T], of a ``PPOModel``: what its critic expects before each token."""
    logits: Tensor | None = None
    """[B, T, V] in float32, if they were asked for."""


@dataclass(frozen=True)
class ForwardBackwardResult:
    """One backward pass."""

    loss: float
    """A mean over the tokens that count; of a custom loss, what it returned."""
    num_tokens: int
    """How much the pass weighs in the optimizer step."""
    logprobs: Tensor | None = None
    """[B, T] as of ``ForwardResult``; None for a custom loss."""
    metrics: dict[str, float] = field(default_factory=dict)
    logits: Tensor | None = None
    """[B, T, V] in float32, if they were asked for."""


@dataclass(frozen=True)
class OptimResult:
    """One optimizer step."""

    step: int
    """How many there have been."""
    grad_norm: float
    """Before it was clipped."""
    learning_rate: float
    """Of the step, in the optimizer's first group."""
    num_tokens: int
    """That its gradient is a mean over."""
