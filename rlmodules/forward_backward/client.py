"""``AsyncTrainingClient``: policy and reference, driven by a researcher's loop."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlmodules.forward_backward.lanes import Lane, resolved
from rlmodules.forward_backward.operations import TrainingClient
from rlmodules.forward_backward.passes import Model
from rlmodules.forward_backward.pipeline import ForwardBackwardPipeline
from rlmodules.forward_backward.remote import RemoteTrainingClient
from rlmodules.forward_backward.tokens import snapshot, tokens_of


class AsyncTrainingClient(TrainingClient):
    """Trains a model beside its frozen reference; every call returns a future at once.

    A reference model has a thread of its own, so its forward passes overlap the policy's training.
    LoRA adapters need none: the model with its adapters off, or with a frozen copy of those that it
    came with, is its own reference.

    Args:
        model, device, max_workers, gradient_accumulation_steps, tokenizer, precision,
            checkpoint_dir: see ``ForwardBackwardPipeline``.
        reference_model: for PPO's KL and DPO; frozen and moved to ``device``.
        optimizer: what makes one from the parameters, ``partial(torch.optim.AdamW, lr=1e-5)`` for
            example; ``optim_step`` then needs none.
        scheduler: what makes one from that optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        reference_model: nn.Module | None = None,
        device: str | None = None,
        gradient_accumulation_steps: int = 1,
        *,
        max_workers: int = 2,
        tokenizer: PreTrainedTokenizerBase | None = None,
        precision: str = "32-true",
        checkpoint_dir: str | Path = "checkpoints",
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        if reference_model is model:
            raise ValueError("reference_model is the model itself: give it a copy.deepcopy of it")
        self.pipeline = ForwardBackwardPipeline(
            model,
            device,
            max_workers,
            gradient_accumulation_steps,
            tokenizer=tokenizer,
            precision=precision,
            checkpoint_dir=checkpoint_dir,
        )
        self._reference: Model | None = None
        if reference_model is not None:
            reference_model.requires_grad_(False).eval()
            self._reference = Model(reference_model, self.pipeline.fabric)
        self._reference_lane = Lane("reference")
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = None if optimizer is None else optimizer(trained)
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)

    @staticmethod
    def connect(
        address: str, make: Callable[[], "AsyncTrainingClient"], **options: Any
    ) -> "RemoteTrainingClient":
        """A client whose model is on a Ray cluster: the same loop, driven from here.

        Args:
            address: ``ray://HOST:10001``, ``auto``, or ``local`` to start a cluster of one.
            make: makes the client that runs there, as an actor; sent there by value.
            options: of the actor: ``num_gpus=1`` for example.
        """
        return RemoteTrainingClient(make, address, **options)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Future:
        own = {"forward_reference": self._forward_reference, "optim_step": self._optim_step}
        return own.get(name, getattr(self.pipeline, name, None))(*args, **kwargs)

    def _forward_reference(self, temperature: float, return_logits: bool, **texts: Any) -> Future:
        texts, reference = snapshot(texts), self._reference
        options = {"temperature": temperature, "with_logits": return_logits}
        if reference is None:
            return self.pipeline.on_model(
                lambda model: model.reference_forward(tokens_of(**resolved(texts)), **options)
            )
        return self._reference_lane.submit(
            lambda: reference.forward(tokens_of(**resolved(texts)), **options)
        )

    def _optim_step(self, optimizer: Any, scheduler: Any, max_grad_norm: float | None) -> Future:
        if optimizer is None and self.optimizer is None:
            raise ValueError("optim_step needs an optimizer, or a client that was given one")
        if optimizer is None:
            optimizer, scheduler = self.optimizer, scheduler or self.scheduler
        return self.pipeline.optim_step(optimizer, scheduler, max_grad_norm)

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """Call ``fn``, a reward for example, beside the model; futures given to it are awaited."""
        return self.pipeline.submit(fn, *args, **kwargs)

    def shutdown(self, *, wait: bool = True, cancel_pending: bool = False) -> None:
        """End after all that is queued, or, if ``cancel_pending``, after what is running."""
        self._reference_lane.shutdown(wait=False, cancel_pending=cancel_pending)
        self.pipeline.shutdown(wait=wait, cancel_pending=cancel_pending)
        self._reference_lane.shutdown(wait=wait, cancel_pending=cancel_pending)
