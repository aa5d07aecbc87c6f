"""``ForwardBackwardPipeline``: a model that is trained by queued operations.

The researcher writes the loop; the pipeline owns the model, its gradients and its device. Whatever
touches the model runs on one thread, in the order in which it was queued; preparing batches and
writing checkpoints run beside it. The operations are Tinker's.
"""

from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlmodules.checks import device_options
from rlmodules.forward_backward.generation import Sampler
from rlmodules.forward_backward.lanes import Closing, Helpers, Lane, resolved, shut_down
from rlmodules.forward_backward.losses import LOSSES, aligned, check_arguments
from rlmodules.forward_backward.passes import Model, model_inputs, to_device
from rlmodules.forward_backward.results import ForwardBackwardResult
from rlmodules.forward_backward.state import located, write
from rlmodules.forward_backward.tokens import PaddedBatch, snapshot, tokens_of
from rlmodules.forward_backward.training import Training

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-true", "64-true")
"""Of Fabric's; one with a loss scale (16-mixed) does not go with sums of several passes."""


class ForwardBackwardPipeline(Closing):
    """Queues forward-backward passes, optimizer steps, sampling and checkpoints of one model.

    Every operation returns a ``concurrent.futures.Future`` at once; ``sample``, ``save_state`` and
    ``load_state`` wait for theirs unless they are told not to. Arguments may be futures too.

    Args:
        model: a causal language model of transformers, LoRA adapters included, or a ``PPOModel``.
            It is moved to ``device`` and belongs to the pipeline from then on.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes what there is.
        max_workers: threads for callbacks.
        gradient_accumulation_steps: ``forward_backward`` calls that an ``optim_step`` takes.
        tokenizer: needed for strings: to stop sampling at, and as its text.
        precision: Lightning Fabric's: 32-true (types as they were loaded), bf16-mixed, bf16-true.
        checkpoint_dir: where ``save_state`` writes.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | None = None,
        max_workers: int = 2,
        gradient_accumulation_steps: int = 1,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        precision: str = "32-true",
        checkpoint_dir: str | Path = "checkpoints",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: use one of {PRECISIONS}")
        options = device_options(device)
        devices = 1 if options["devices"] == "auto" else options["devices"]
        self.fabric = L.Fabric(
            accelerator=options["accelerator"], devices=devices, precision=precision
        )
        self._model = Model(model, self.fabric)
        self._training = Training(model, gradient_accumulation_steps)
        self._lane, self._preparing, self._files = Lane("model"), Lane("batches"), Lane("files")
        self._helpers = Helpers(max_workers)
        self._sampler = Sampler(self._model, tokenizer)
        self._checkpoint_dir, self._written = Path(checkpoint_dir), None
        self.model, self.tokenizer = model, tokenizer

    # ------------------------------------------------------------------ training

    def forward_backward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        labels: Any = None,
        loss_fn: str = "cross_entropy",
        *,
        mask: Any = None,
        temperature: float = 1.0,
        return_logits: bool = False,
        **loss_arguments: Any,
    ) -> Future:
        """Queue a forward and a backward pass of a loss known by name.

        Args:
            input_ids: [B, T], or a list of texts; see ``tokens_of`` for these three and ``mask``.
            loss_fn: ``cross_entropy``, ``importance_sampling`` or ``ppo`` (see ``losses``).
            temperature: that the tokens were sampled at; log-probabilities are of
                ``softmax(logits / temperature)``.
            return_logits: whether the result holds all logits.
            loss_arguments: the loss's own: numbers, and tensors as of ``PaddedBatch.aligned``.

        Returns:
            A future of a ``ForwardBackwardResult``. If it raises, gradients are as they were.

        Raises:
            ValueError: there is no such loss, or an argument of it is missing or unknown.
        """
        check_arguments(loss_fn, loss_arguments)
        ready = self._prepare((input_ids, attention_mask, labels, mask), loss_arguments)

        def run() -> ForwardBackwardResult:
            tokens, arguments = ready.result()
            with self._training.window.one_pass(tokens.count):
                return self._model.forward_backward(
                    tokens,
                    LOSSES[loss_fn],
                    to_device(arguments, self.fabric.device),
                    weight=self._training.window.weight(tokens.count),
                    temperature=temperature,
                    with_logits=return_logits,
                )

        return self._queue(run)

    def forward_backward_custom(
        self,
        input_ids: Any,
        custom_loss_fn: Callable[..., Tensor],
        attention_mask: Any = None,
        *,
        num_tokens: int | None = None,
        **kwargs: Any,
    ) -> Future:
        """Queue a pass of a loss of one's own, which sees the model's whole output.

        Args:
            custom_loss_fn: ``(model, inputs, outputs, **kwargs) -> scalar``, called on the model's
                thread; ``outputs.logits`` is [B, T, V].
            num_tokens: that the scalar is a mean over; so much the pass weighs in its optimizer
                step. Default: the tokens that are predicted in all.

        Returns:
            A future of a ``ForwardBackwardResult``. If it raises, gradients are as they were.
        """
        texts, arguments = (snapshot(input_ids), snapshot(attention_mask)), snapshot(kwargs)

        def prepare() -> tuple[dict[str, Tensor], int, dict[str, Any]]:
            return *model_inputs(*map(resolved, texts)), resolved(arguments)

        ready = self._preparing.submit(prepare)

        def run() -> ForwardBackwardResult:
            inputs, predicted, found = ready.result()
            count = predicted if num_tokens is None else num_tokens
            weight = self._training.window.weight(count)
            with self._training.window.one_pass(count):
                return self._model.custom(
                    inputs, custom_loss_fn, found, weight=weight, num_tokens=count
                )

        return self._queue(run)

    def optim_step(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: Any = None,
        max_grad_norm: float | None = 1.0,
    ) -> Future:
        """Queue an optimizer step on the mean over all tokens since the last one.

        Args:
            optimizer: over parameters of the model.
            scheduler: stepped after it, if there is one.
            max_grad_norm: gradients are scaled down to this norm; None leaves them.

        Returns:
            A future of an ``OptimResult``. It raises, and nothing is stepped, if passes are missing
            (``gradient_accumulation_steps``): one that failed must come again.
        """
        self._training.require_own(optimizer)
        return self._queue(self._training.step, optimizer, scheduler, max_grad_norm)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        labels: Any = None,
        *,
        mask: Any = None,
        temperature: float = 1.0,
        return_logits: bool = False,
    ) -> Future:
        """Queue a forward pass without gradients and dropout; a future of a ``ForwardResult``."""
        ready = self._prepare((input_ids, attention_mask, labels, mask), {})
        options = {"temperature": temperature, "with_logits": return_logits}
        return self._queue(lambda: self._model.forward(ready.result()[0], **options))

    def on_model(self, fn: Callable[[Model], Any]) -> Future:
        """Queue a call of ``fn`` with the model."""
        return self._queue(fn, self._model)

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """Call ``fn``, a reward for example, beside the model; futures given to it are awaited."""
        return self._helpers.submit(fn, *args, **kwargs)

    def sample(
        self,
        prompt: Any,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Any = None,
        *,
        seed: int | None = None,
        wait: bool = True,
    ) -> dict[str, Any] | Future:
        """Write what follows a prompt, or each of several.

        Calls that are made at the same time (``wait=False``, or threads) are answered together.

        Args:
            prompt: token ids as a list or [T]; or several: lists of lists, [B, T].
            max_tokens, temperature: most tokens of a response; 0 takes the likeliest ones.
            top_k, top_p: draw among the k likeliest, and among the likeliest of mass p.
            stop: token ids and strings that end a response, besides the tokenizer's end token.
            seed: default: drawn from PyTorch's random state.

        Returns:
            ``tokens``, ``logprobs`` (each of ``softmax(logits / temperature)``, as ``forward`` and
            the losses give it), ``prompt``, ``finish_reason``, and with a tokenizer ``text``; lists
            of them for several prompts. A future of it unless ``wait``.
        """
        params = self._sampler.params(max_tokens, temperature, top_k, top_p, stop)
        answer = self._sampler.request(self._lane, prompt, params, seed)
        return answer.result() if wait else answer

    # ---------------------------------------------------------------- checkpoints

    def save_state(self, name: str, *, wait: bool = True) -> dict[str, str] | Future:
        """Write model, optimizer, scheduler, gradients, step and random states, atomically.

        What is queued later goes on while it is written.

        Args:
            name: of a folder in ``checkpoint_dir``, or the path of one.

        Returns:
            ``path``, ``model_path``, ``optimizer_path`` and ``state_path``; a future of it unless
            ``wait``.
        """
        folder = self._checkpoint_dir / name
        captured = self._queue(self._training.capture)
        self._written = self._files.submit(lambda parts: write(folder, *parts), captured)
        return self._written.result() if wait else self._written

    def load_state(self, path: str | Path, *, wait: bool = True) -> dict[str, str] | Future:
        """Go on as after ``save_state``; optimizer and scheduler take theirs when they are used.

        Args:
            path: of the folder; or the name that it was saved under.

        Raises:
            CheckpointError: it is no complete checkpoint of this model; nothing has changed.
        """
        written = self._written

        def load() -> dict[str, str]:
            if written is not None:
                futures.wait([written])  # it may be this one
            return self._training.restore(located(self._checkpoint_dir, Path(path)))

        loaded = self._queue(load)
        return loaded.result() if wait else loaded

    # -------------------------------------------------------------------- the end

    def shutdown(self, *, wait: bool = True, cancel_pending: bool = False) -> None:
        if cancel_pending:
            self._lane.shutdown(wait=False, cancel_pending=True)  # takes nothing from here on
            self._sampler.cancel_waiting()
        pools = (self._lane, self._preparing, self._files, self._helpers)
        shut_down(pools, wait=wait, cancel_pending=cancel_pending)

    # ------------------------------------------------------- on the model's thread

    def _queue(self, fn: Callable[..., Any], *args: Any) -> Future:
        """On the model's thread, after all that was queued before."""
        with self._sampler.lock:
            self._sampler.note_change()
            return self._lane.submit(fn, *args)

    def _prepare(self, texts: tuple[Any, ...], arguments: dict[str, Any]) -> Future:
        """A future of ``(batch, aligned arguments)``; ``texts`` as ``tokens_of`` takes them."""
        texts, arguments = tuple(map(snapshot, texts)), snapshot(arguments)

        def prepare() -> tuple[PaddedBatch, dict[str, Any]]:
            tokens = tokens_of(*map(resolved, texts))
            return tokens, aligned(tokens, resolved(arguments))

        return self._preparing.submit(prepare)
