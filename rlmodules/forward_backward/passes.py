"""Forward and backward passes over one model: what a pipeline's operations compute."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from rlmodules.forward_backward.gradients import NonFiniteLossError
from rlmodules.forward_backward.results import ForwardBackwardResult, ForwardResult
from rlmodules.forward_backward.tokens import Tokens, score_tokens
from rlmodules.models import PPOModel, backbone
from rlmodules.models.adapters import adapters_off
from rlmodules.models.heads import check_projection
from rlmodules.models.layout import can_pack


class Model:
    """A causal language model, or a ``PPOModel``, on its device.

    Raises:
        ValueError: it is no causal language model of which logits are understood.
    """

    def __init__(self, module: nn.Module, fabric: L.Fabric) -> None:
        fabric.setup_module(module)  # moves and converts it in place
        self.module, self.fabric = module, fabric
        self.language = module.base_model if isinstance(module, PPOModel) else module
        self.value_head = module.value_head if isinstance(module, PPOModel) else None
        if not hasattr(self.language, "get_output_embeddings"):
            raise ValueError(f"{type(module).__name__} is no causal language model of transformers")
        check_projection(self.language)
        self.packs = can_pack(backbone(self.language))

    def forward(self, tokens: Tokens, *, temperature: float, with_logits: bool) -> ForwardResult:
        """Log-probabilities, without gradients and without dropout."""
        with self.evaluating(), self.fabric.autocast():
            scored = score_tokens(
                self.language,
                tokens,
                packs=self.packs,
                temperature=temperature,
                with_logits=with_logits,
            )
            values = None if self.value_head is None else self.value_head(scored.hidden)
        return ForwardResult(
            logprobs=tokens.scatter(scored.logprobs),
            mask=tokens.mask,
            values=None if values is None else tokens.scatter(values),
            logits=scored.logits,
        )

    def forward_backward(
        self,
        tokens: Tokens,
        loss_fn: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        weight: float,
        temperature: float,
        with_logits: bool,
    ) -> ForwardBackwardResult:
        """One pass; gradients are added to ``p.grad``.

        Args:
            loss_fn: one of ``losses.LOSSES``.
            weight: that the loss is multiplied with for its gradient.
        """
        extras = {}
        if "value_head" in inspect.signature(loss_fn).parameters:
            extras["value_head"] = self.value_head
        with self.fabric.autocast():
            scored = score_tokens(
                self.language,
                tokens,
                packs=self.packs,
                temperature=temperature,
                with_entropy=bool(arguments.get("entropy_coef")),
                with_logits=with_logits,
            )
            loss, metrics = loss_fn(scored, **arguments, **extras)
        self._backward(loss, weight)
        return ForwardBackwardResult(
            loss=loss.item(),
            num_tokens=tokens.count,
            logprobs=tokens.scatter(scored.logprobs),
            metrics={name: float(value) for name, value in metrics.items()},
            logits=scored.logits,
        )

    def custom(
        self,
        inputs: Mapping[str, Tensor],
        loss_fn: Callable[..., Tensor],
        arguments: Mapping[str, Any],
        *,
        weight: float,
        num_tokens: int,
    ) -> ForwardBackwardResult:
        """One pass of a user's loss.

        Args:
            weight: that the loss is multiplied with for its gradient.

        Raises:
            TypeError: it returned no tensor.
            ValueError: the tensor is no scalar, or no gradient flows from it.
        """
        inputs = to_device(inputs, self.fabric.device)
        arguments = to_device(arguments, self.fabric.device)
        with self.fabric.autocast():
            loss = loss_fn(self.module, inputs, self._outputs(inputs), **arguments)
        name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        if not isinstance(loss, Tensor):
            raise TypeError(f"{name} returned a {type(loss).__name__}, expected a scalar tensor")
        if loss.numel() != 1:
            raise ValueError(
                f"{name} returned a tensor of shape {list(loss.shape)}, expected a scalar: reduce"
                " it, with .mean() for example"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"no gradient flows from what {name} returned: compute it from outputs, without"
                " detach() or no_grad()"
            )
        self._backward(loss.reshape(()), weight)
        return ForwardBackwardResult(loss=loss.item(), num_tokens=num_tokens)

    def _outputs(self, inputs: Mapping[str, Tensor]) -> Any:
        """The model's output, with ``logits``; of a ``PPOModel`` with ``values`` [B, T] too."""
        if self.value_head is None:
            return self.module(**inputs)
        mask = inputs.get("attention_mask")
        logits, values = self.module(inputs["input_ids"], mask)
        return SimpleNamespace(logits=logits, values=values)

    def _backward(self, loss: Tensor, weight: float) -> None:
        if not bool(loss.isfinite()):
            raise NonFiniteLossError(f"the loss is {loss.item()}; its gradient was not computed")
        self.fabric.backward(loss if weight == 1.0 else loss * weight)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Without gradients, in eval mode; the mode is restored."""
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(training)

    def reference_forward(self, tokens: Tokens, **options: Any) -> ForwardResult:
        """``forward`` of the model that LoRA started from.

        Raises:
            ValueError: there are no adapters.
        """
        if not hasattr(self.language, "disable_adapter"):
            raise ValueError(
                "there is no reference: give the client a reference_model, or train LoRA adapters,"
                " without which the model is its own reference"
            )
        with adapters_off(self.language):
            return self.forward(tokens, **options)


def model_inputs(input_ids: Any, attention_mask: Any) -> tuple[dict[str, Tensor], int]:
    """What a model takes of a padded batch, and how many tokens it predicts.

    Positions count real tokens, whichever side the padding is on.
    """
    ids = torch.as_tensor(input_ids).long()
    ids = ids[None] if ids.dim() == 1 else ids
    if attention_mask is None:
        return {"input_ids": ids}, max(ids.numel() - len(ids), 1)
    mask = torch.as_tensor(attention_mask).long().reshape(ids.shape)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if not bool(mask[:, 0].all()):
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return inputs, max(int(mask.sum()) - len(ids), 1)


def to_device(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The same with its tensors on ``device``."""
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
