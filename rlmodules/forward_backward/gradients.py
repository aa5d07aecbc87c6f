"""Gradients of several backward passes, each of which either counts whole or not at all."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """A loss or its gradient is NaN or infinite; nothing of it was kept."""


class GradientWindow:
    """What the ``steps`` backward passes of one optimizer step come to: a mean over all tokens.

    How many tokens there will be is known at the end only. So in a window of several passes the
    gradients of ``loss * tokens`` add up in ``p.grad``, as in a plain loop of ``backward`` calls,
    and ``average`` divides them once; a window of one pass has that of ``loss``. Both are bit for
    bit what a loop without any of this computes.

    Args:
        parameters: all that may be trained.
        steps: backward passes an optimizer step.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], steps: int) -> None:
        if steps < 1:
            raise ValueError(f"gradient_accumulation_steps={steps} must be at least 1")
        self.parameters = [p for p in parameters if p.requires_grad]
        self.steps = steps
        self.passes, self.tokens, self.averaged = 0, 0.0, False
        self.norm: Tensor | None = None
        """Of the gradients as they are, where it is known."""

    @contextlib.contextmanager
    def one_pass(self, tokens: float) -> Iterator[None]:
        """Run one backward pass inside; if anything fails, gradients are as they were before.

        Args:
            tokens: how much it counts.

        Raises:
            RuntimeError: the window is full.
            NonFiniteLossError: a gradient holds NaN or infinity.
        """
        if self.passes == self.steps:
            raise RuntimeError(
                f"gradient_accumulation_steps={self.steps} backward passes are there already: call"
                " optim_step before the next"
            )
        before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        try:
            yield
            norm = self._finite_norm()
        except BaseException:
            for p, grad in zip(self.parameters, before, strict=True):
                p.grad = grad
            raise
        if self.passes:
            for p, old in zip(self.parameters, before, strict=True):
                if old is not None:
                    p.grad = old if p.grad is None else old.add_(p.grad)
        self.passes, self.tokens = self.passes + 1, self.tokens + tokens
        self.norm = norm if self.steps == 1 else None

    def _finite_norm(self) -> Tensor:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if not grads:
            raise RuntimeError("the loss reaches no parameter that is trained")
        norm = nn.utils.get_total_norm(grads)
        if not bool(norm.isfinite()):
            raise NonFiniteLossError(f"the gradient norm is {norm.item()}; nothing was added")
        return norm

    def weight(self, tokens: float) -> float:
        """What the loss of a pass, a mean over ``tokens`` tokens, is multiplied with."""
        return 1.0 if self.steps == 1 else tokens

    def require_full(self) -> None:
        """
        Raises:
            RuntimeError: passes are missing.
        """
        if self.passes < self.steps:
            raise RuntimeError(
                f"optim_step after {self.passes} of gradient_accumulation_steps={self.steps}"
                " backward passes (one that failed or was cancelled does not count): no step was"
                " taken. Queue the missing ones, then optim_step again"
            )

    def average(self) -> None:
        """Turn the sums into means, once."""
        if self.steps > 1 and not self.averaged:
            for p in self.parameters:
                if p.grad is not None:
                    p.grad.div_(self.tokens)
        self.averaged = True

    def clip(self, max_norm: float | None) -> Tensor:
        """Scale the gradients down to ``max_norm``; returns the norm that they had."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads) if self.norm is None else self.norm
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, max_norm, norm)
            self.norm = None
        return norm

    def clear(self) -> None:
        for p in self.parameters:
            p.grad = None
        self.passes, self.tokens, self.averaged, self.norm = 0, 0.0, False, None

    def state_dict(self) -> dict[str, object]:
        """Plain values and tensors."""
        grads = {
            str(i): p.grad.detach().to("cpu", copy=True)
            for i, p in enumerate(self.parameters)
            if p.grad is not None
        }
        return {
            "steps": self.steps,
            "passes": self.passes,
            "tokens": self.tokens,
            "averaged": self.averaged,
            "gradients": grads,
        }

    def load_state_dict(self, state: dict) -> None:
        self.clear()
        self.passes, self.tokens = state["passes"], state["tokens"]
        self.averaged = state["averaged"]
        for i, p in enumerate(self.parameters):
            grad = state["gradients"].get(str(i))
            p.grad = None if grad is None else grad.to(p.device, p.dtype, copy=True)
