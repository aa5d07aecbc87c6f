"""The value head, and the two parts of a causal language model: its backbone and its projection.

Shapes: B sequences, T tokens, H hidden size, V vocabulary, N chosen positions.
"""

import inspect
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from rlmodules.functional.logprobs import Projection
from rlmodules.models.modes import evaluating

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call the cap of their logits."""


def unwrapped(model: Any) -> Any:
    """The Hugging Face model in a PEFT model, with its LoRA layers; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: nn.Module) -> nn.Module:
    """The transformer below the vocabulary projection, with any LoRA layers inside it.

    Raises:
        ValueError: the model has no separate backbone.
    """
    inner = unwrapped(model)
    found = [inner.get_decoder() if hasattr(inner, "get_decoder") else None, inner.base_model]
    found += [part for name, part in inner.named_children() if name in ("model", "transformer")]
    for body in found:
        if isinstance(body, nn.Module) and body is not inner and _reads_tokens(body):
            return body
    raise ValueError(f"{type(inner).__name__} has no separate backbone: not a causal LM?")


def _reads_tokens(module: nn.Module) -> bool:
    return "input_ids" in inspect.signature(module.forward).parameters


def projection(model: nn.Module) -> Projection:
    """How ``model`` turns its last hidden state into logits.

    Raises:
        ValueError: adapters sit on the vocabulary projection.
    """
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    if isinstance(head, BaseTunerLayer | ModulesToSaveWrapper):
        raise ValueError(
            "LoRA on the vocabulary projection is not supported: take it out of"
            " model.lora.target_modules (all-linear leaves it alone)"
        )
    config = inner.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    if scale is None:
        scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    return Projection(
        weight=head.weight,
        bias=getattr(head, "bias", None),
        scale=float(scale),
        softcap=next((cap for name in SOFTCAPS if (cap := getattr(config, name, None))), None),
    )


def check_projection(model: nn.Module) -> None:
    """Compare ``projection`` over ``backbone`` with the model's own logits on three tokens.

    Ours are computed beside a longer text: no row may depend on its company.

    Raises:
        ValueError: they differ, so the architecture treats its logits in a way not known here, or
            lets its tokens look at what follows them, or at other rows.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([[3, 5, 7, 4, 8], [4, 3, 6, 5, 9]], device=device)
    name = type(model).__name__
    with evaluating(model):
        try:
            theirs = model(input_ids=ids[:1, :3], use_cache=False).logits.float()
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} does not continue text by itself ({error}): give a causal language model"
            ) from error
        try:
            hidden = backbone(model)(input_ids=ids, use_cache=False)[0][:1, :3]
            ours = projection(model).logits(hidden)
        except (AttributeError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{name}: its logits cannot be computed from its hidden states ({error}); this"
                " architecture is not supported yet"
            ) from error
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 0.05
    if ours.shape != theirs.shape or not torch.allclose(
        ours, theirs, rtol=tolerance, atol=tolerance
    ):
        raise ValueError(
            f"{name}: logits computed from the hidden states of a batch differ from those of a text"
            f" alone{_by(ours, theirs)}; this architecture is not supported yet"
        )


def _by(ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape:
        return f" in their number ({ours.shape[-1]} and {theirs.shape[-1]} tokens)"
    return f" by up to {(ours - theirs).abs().max():.3g}"


class ValueHead(nn.Module):
    """hidden -> ReLU -> one scalar, per token. Starts out predicting exactly 0 everywhere.

    Computes in float32 whatever the precision of the backbone: returns need the digits.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [...]."""
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.hidden.weight.dtype)
            return self.output(torch.relu(self.hidden(hidden))).squeeze(-1).float()


def hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Last hidden states [B, T, H]; positions count real tokens, whatever the padding side."""
    inputs: dict[str, Tensor | bool] = {"input_ids": input_ids, "use_cache": False}
    if attention_mask is not None:
        inputs["attention_mask"] = attention_mask
        inputs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return backbone(model)(**inputs)[0]
