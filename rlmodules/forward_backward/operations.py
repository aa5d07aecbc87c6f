"""The calls of a researcher's loop, wherever the model is that they train."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from rlmodules.forward_backward.lanes import Closing

TEXTS = ("input_ids", "attention_mask", "labels", "mask")
"""What of a batch names its tokens; the rest are arguments of the loss."""


class TrainingClient(Closing):
    """Queues operations of a model; every call returns a future at once.

    Where they go is the business of ``call`` alone: to a pipeline of this process, or over the
    network.
    """

    def call(self, name: str, *args: Any, **kwargs: Any) -> Future:
        """Queue the operation of that name."""
        raise NotImplementedError

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """Call ``fn``, a reward for example, beside the model; futures given to it are awaited."""
        raise NotImplementedError

    def forward_backward(
        self, batch: Mapping[str, Any], loss_fn: str = "cross_entropy", **arguments: Any
    ) -> Future:
        """Queue a pass over ``batch``; what is in it besides its texts goes to the loss.

        Args:
            batch: ``input_ids``, ``attention_mask``, ``labels``, ``mask``, and what the loss takes.
            loss_fn, arguments: see ``ForwardBackwardPipeline.forward_backward``.

        Returns:
            A future of a ``ForwardBackwardResult``.
        """
        return self.call("forward_backward", **batch, **arguments, loss_fn=loss_fn)

    def forward_backward_custom(
        self, batch: Mapping[str, Any], custom_loss_fn: Callable[..., Any], **kwargs: Any
    ) -> Future:
        """Queue a pass of one's own loss; see ``ForwardBackwardPipeline``."""
        return self.call(
            "forward_backward_custom", custom_loss_fn=custom_loss_fn, **batch, **kwargs
        )

    def forward(
        self,
        batch: Mapping[str, Any],
        use_reference: bool = False,
        *,
        temperature: float = 1.0,
        return_logits: bool = False,
    ) -> Future:
        """Queue a forward pass of the model, or of its reference, over the batch's texts.

        Returns:
            A future of a ``ForwardResult``.
        """
        texts = {name: batch[name] for name in TEXTS if name in batch}
        options = {"temperature": temperature, "return_logits": return_logits}
        return self.call("forward_reference" if use_reference else "forward", **texts, **options)

    def optim_step(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        max_grad_norm: float | None = 1.0,
    ) -> Future:
        """Queue an optimizer step; see ``ForwardBackwardPipeline``.

        Args:
            optimizer, scheduler: default: those that the client was told to make. A client whose
                model is elsewhere takes no others.
        """
        return self.call("optim_step", optimizer, scheduler, max_grad_norm=max_grad_norm)

    def sample(self, prompt: Any, *args: Any, **kwargs: Any) -> Future:
        """Queue a request for text; see ``ForwardBackwardPipeline.sample``."""
        return self.call("sample", prompt, *args, **kwargs, wait=False)

    def save_state(self, name: str) -> Future:
        """Queue a checkpoint, where the model is; see ``ForwardBackwardPipeline.save_state``."""
        return self.call("save_state", name, wait=False)

    def load_state(self, path: str | Path) -> Future:
        """Queue the way back to a checkpoint; see ``ForwardBackwardPipeline.load_state``."""
        return self.call("load_state", str(path), wait=False)
