"""Forward and backward passes over one model: what a pipeline's operations compute."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from datamodules.experience import TokenBatch
from rlmodules.forward_backward.gradients import NonFiniteLossError
from rlmodules.forward_backward.results import ForwardBackwardResult, ForwardResult
from rlmodules.forward_backward.tokens import PaddedBatch
from rlmodules.models import PolicyModel, Reference
from rlmodules.models.adapters import trains_adapters_alone
from rlmodules.models.modes import evaluating, without_dropout

OLD = ("old_logprobs", "old_log_probs")
"""Arguments of losses of ratios."""


class Model:
    """A causal language model, or a ``PPOModel``, on its device.

    Raises:
        ValueError: it is no causal language model of which logits are understood.
    """

    def __init__(self, module: nn.Module, fabric: L.Fabric) -> None:
        fabric.setup_module(module)  # moves and converts it in place
        self.module, self.fabric = module, fabric
        if not hasattr(getattr(module, "base_model", module), "get_output_embeddings"):
            raise ValueError(f"{type(module).__name__} is no causal language model of transformers")
        self.policy = PolicyModel.of(module)
        self.policy.enable_packing()
        base = self.policy.base_model
        starts = any(p.requires_grad for p in base.parameters()) and trains_adapters_alone(base)
        self.reference = Reference(self.policy) if starts else None

    def forward(
        self, batch: PaddedBatch, *, temperature: float, with_logits: bool
    ) -> ForwardResult:
        """Log-probabilities, without gradients and without dropout."""
        with evaluating(self.module), self.fabric.autocast():
            scores = self.policy.score(
                self._tokens(batch),
                temperature=temperature,
                with_values=self.policy.value_head is not None,
                with_logits=with_logits,
            )
        return ForwardResult(
            logprobs=batch.scatter(scores.logprobs),
            mask=batch.mask,
            values=None if scores.values is None else batch.scatter(scores.values),
            logits=batch.scatter_logits(scores.logits) if with_logits else None,
        )

    def forward_backward(
        self,
        batch: PaddedBatch,
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
        trains_critic = arguments.get("returns") is not None and self.policy.value_head is not None
        has_ratios = any(name in arguments for name in OLD)  # which are 1 until a step is taken
        dropout = without_dropout(self.policy.base_model) if has_ratios else nullcontext()
        with dropout, self.fabric.autocast():
            scores = self.policy.score(
                self._tokens(batch),
                temperature=temperature,
                with_entropy=bool(arguments.get("entropy_coef")),
                with_values=trains_critic,
                with_logits=with_logits,
            )
            loss, metrics = loss_fn(scores, **arguments)
        self._backward(loss, weight)
        return ForwardBackwardResult(
            loss=loss.item(),
            num_tokens=batch.count,
            logprobs=batch.scatter(scores.logprobs),
            metrics={name: float(value) for name, value in metrics.items()},
            logits=batch.scatter_logits(scores.logits) if with_logits else None,
        )

    def _tokens(self, batch: PaddedBatch) -> TokenBatch:
        """
        Raises:
            ValueError: a token is none of the model's.
        """
        known = self.policy.base_model.get_input_embeddings().num_embeddings
        ids = torch.cat([*batch.tokens.sequences, batch.tokens.actions])
        wrong = ids[(ids < 0) | (ids >= known)]
        if len(wrong):
            raise ValueError(
                f"input_ids or labels hold the id {int(wrong[0])}, the model knows 0 to {known - 1}"
            )
        return batch.tokens.to(self.fabric.device)

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
        if self.policy is not self.module:
            return self.module(**inputs)
        mask = inputs.get("attention_mask")
        logits, values = self.module(inputs["input_ids"], mask)
        return SimpleNamespace(logits=logits, values=values)

    def _backward(self, loss: Tensor, weight: float) -> None:
        if not bool(loss.isfinite()):
            raise NonFiniteLossError(f"the loss is {loss.item()}; its gradient was not computed")
        self.fabric.backward(loss if weight == 1.0 else loss * weight)

    def reference_forward(self, batch: PaddedBatch, **options: Any) -> ForwardResult:
        """``forward`` of the model as it was when the client began, if it trains adapters alone.

        Raises:
            ValueError: it does not.
        """
        if self.reference is None:
            raise ValueError(
                "there is no reference: give the client a reference_model, or train LoRA adapters"
                " alone, of which a copy is the reference"
            )
        with self.reference.of(self.policy):
            return self.forward(batch, **options)


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
    return apply_to_collection(dict(values), Tensor, lambda x: x.to(device))
