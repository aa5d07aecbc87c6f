"""The value head, and the two parts of a causal language model: its backbone and its projection.

Shapes: B sequences, T tokens, H hidden size, V vocabulary, N chosen positions.
"""

import inspect
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from rlmodules.functional.logprobs import Projection
from rlmodules.models.modes import evaluating

MULTIPLIED = ("logit_scale", "lm_head_multiplier")
DIVIDED = ("logits_scaling", "logits_mup_width_multiplier")
"""What configs call the scale of their logits."""
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call the cap of their logits."""
REMEDY = "choose a decoder whose logits are one linear layer over its own hidden states"


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


@dataclass(frozen=True)
class LogitShape:
    """What a model does with the logits that its vocabulary projection gives."""

    scale: float = 1.0
    softcap: float | None = None
    size: int | None = None
    """How many of them it keeps; None for all."""


def projection(model: nn.Module, shape: LogitShape | None = None) -> Projection:
    """How ``model`` turns its last hidden state into logits.

    Args:
        shape: what ``logit_shape`` finds, which is the default.

    Raises:
        ValueError: adapters sit on the vocabulary projection, or see ``logit_shape``.
    """
    shape = logit_shape(model) if shape is None else shape
    head = unwrapped(model).get_output_embeddings()
    if isinstance(head, BaseTunerLayer | ModulesToSaveWrapper):
        raise ValueError(
            "LoRA on the vocabulary projection is not supported: take it out of"
            " model.lora.target_modules (all-linear leaves it alone)"
        )
    weight, bias = head.weight, getattr(head, "bias", None)
    if shape.size is not None:
        weight, bias = weight[: shape.size], None if bias is None else bias[: shape.size]
    return Projection(
        weight=weight,
        bias=bias,
        scale=shape.scale,
        softcap=shape.softcap,
    )


def logit_shape(model: nn.Module) -> LogitShape:
    """How ``projection`` over ``backbone`` gives the model's own logits, by trying on three tokens.

    Configs name a number, and architectures multiply by it, divide by it, or ignore it. Ours are
    computed beside a longer text as well: no row may depend on its company.

    Raises:
        ValueError: nothing gives them, so the architecture treats its logits in a way not known
            here, or lets its tokens look at what follows them, or at other rows.
    """
    inner = unwrapped(model)
    name, config = type(inner).__name__, inner.config.get_text_config()
    with evaluating(model):
        alone, beside, theirs = _plain_and_own(model, name)
    size, in_full = theirs.shape[-1], next(model.parameters()).dtype == torch.float32
    if alone.shape != theirs.shape:
        raise ValueError(
            f"{name} gives logits of {size} tokens, its vocabulary projection of"
            f" {alone.shape[-1]}, so it is not supported: {REMEDY}"
        )
    company = float((beside - alone).norm() / alone.norm().clamp(min=1e-6))
    if not company < (1e-3 if in_full else 0.1):  # batches of another shape are rounded otherwise
        raise ValueError(
            f"{name}: what it says of a text changes, by {company:.2g} of it, with later tokens and"
            f" with texts beside it, so it is not supported: {REMEDY}"
        )
    tolerance = 1e-4 if in_full else 0.05
    for scale, cap in itertools.product(_scales(config), _caps(config)):
        if torch.allclose(_shaped(alone, scale, cap), theirs, rtol=tolerance, atol=tolerance):
            rows = len(inner.get_output_embeddings().weight)
            return LogitShape(scale, cap, size if size < rows else None)
    raise ValueError(
        f"{name}: logits computed from its hidden states differ from its own by up to"
        f" {(alone - theirs).abs().max():.3g}, so it is not supported: {REMEDY}"
    )


def _plain_and_own(model: nn.Module, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """[1, 3, V] of the projection for a text alone, and in a batch, and the model's own."""
    inner, device = unwrapped(model), next(model.parameters()).device
    pad = getattr(inner.config.get_text_config(), "pad_token_id", None)
    known = isinstance(pad, int) and 0 <= pad < len(inner.get_input_embeddings().weight)
    # A text may hold the padding token: XLM counts it to tell how long a text is.
    ids = torch.tensor([[3, pad if known else 5, 7, 4, 8], [4, 3, 6, 5, 9]], device=device)
    try:
        own = model(input_ids=ids[:1, :3], use_cache=False).logits.float()
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} does not continue text by itself ({error}): give a causal language model"
        ) from error
    try:
        plain = projection(model, LogitShape(size=own.shape[-1]))
        alone, beside = (
            plain.logits(backbone(model)(input_ids=rows, use_cache=False)[0][:1, :3])
            for rows in (ids[:1, :3], ids)
        )
        return alone, beside, own
    except (AttributeError, AssertionError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name}: its logits cannot be computed from its hidden states"
            f" ({type(error).__name__}: {error}), so it is not supported: {REMEDY}"
        ) from error


def _scales(config: Any) -> list[float]:
    """What logits might be multiplied by, the likeliest first."""
    numbers = [float(getattr(config, name, None) or 1.0) for name in MULTIPLIED]
    numbers += [1.0 / float(getattr(config, name, None) or 1.0) for name in DIVIDED]
    found = [number for number in numbers if number != 1.0]
    return [*found, 1.0, *(1.0 / number for number in found)]


def _caps(config: Any) -> list[float | None]:
    found = [getattr(config, name, None) for name in SOFTCAPS]
    return [*(float(cap) for cap in found if cap), None]


def _shaped(plain: Tensor, scale: float, cap: float | None) -> Tensor:
    return plain * scale if cap is None else torch.tanh(plain * scale / cap) * cap


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
