"""A model of which nothing but its sizes exists: made of its config alone, on fake tensors."""

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from rlmodules.memory.quantized import hold_quantized
from rlmodules.models import TINY, ModelConfig, embedded_model_dir
from rlmodules.models.adapters import add_lora
from rlmodules.models.attention import PACKED
from rlmodules.models.embedded import EMBEDDED, tiny_config
from rlmodules.models.heads import backbone, unwrapped
from rlmodules.models.lean import keep_less
from rlmodules.models.loading import config_of_base, dtype_of
from rlmodules.models.media import freeze_unreached, language_model, language_model_class
from rlmodules.models.modes import disable_dropout
from rlmodules.models.packing import enable_packing
from rlmodules.models.saved_adapters import SavedAdapter, saved_adapter


@dataclass
class Paper:
    """A model on fake tensors.

    Attributes:
        model: the causal language model, or the transformer alone; adapters included.
        mode: that its tensors are of; passes go on within.
        has_head: whether it is a language model.
        is_own_reference: whether without its adapters it is as it starts.
    """

    model: Any
    mode: FakeTensorMode
    has_head: bool
    is_own_reference: bool

    @property
    def config(self) -> Any:
        """Of the part that reads text."""
        return self.model.config.get_text_config()

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def hidden_size(self) -> int:
        embeddings = unwrapped(self.model).get_output_embeddings() if self.has_head else None
        return self.config.hidden_size if embeddings is None else embeddings.weight.shape[1]

    @property
    def is_causal(self) -> bool:
        """Whether no token sees a later one, as far as the attention says."""
        return any(getattr(part, "is_causal", False) for part in self.model.modules())

    def shortened(self, layers: int) -> "Paper":
        """The same with the first ``layers`` of its layers."""
        model = self._copy()
        holder, name = _holder_of_layers(body_of(model, self.has_head))
        setattr(holder, name, getattr(holder, name)[:layers])
        model.config.get_text_config().num_hidden_layers = layers
        return replace(self, model=model)

    def shallow(self) -> "Paper":
        """The same with as few layers as show what each takes that is let go of, where they are
        alike."""
        period = period_of(self)
        return self if period is None else self.shortened(2 * period)

    @property
    def packs(self) -> bool:
        return getattr(self.model.config, "_attn_implementation", None) in PACKED.values()

    def reference(self) -> Any:
        """A frozen copy, of which what is frozen anyway is the model's own."""
        shared = [p for p in self.model.parameters() if not p.requires_grad]
        return self._copy(shared).requires_grad_(False)

    def _copy(self, shared: Iterable[Any] = ()) -> Any:
        same = {id(part): part for part in (self.mode, *shared)}  # tensors hold their mode
        with self.mode, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer")
            return copy.deepcopy(self.model, same)


def on_paper(
    config: ModelConfig,
    *,
    head: bool,
    device: str,
    packs: bool,
    half: bool,
    dtype: torch.dtype | None = None,
    trained: bool = True,
    mode: FakeTensorMode | None = None,
) -> Paper:
    """The model that ``config`` names, as a run on ``device`` would load it, but for its weights.

    Args:
        head: of a policy, which predicts tokens; a reward model reads them alone.
        packs: whether rows are packed, if its attention is one that can.
        half: whether frozen weights are bfloat16 by themselves.
        dtype: what the Trainer makes of all weights; None leaves them.
        trained: False freezes all of it.
        mode: that of another model, to be in passes with it.

    Raises:
        ValueError: no config is at ``model.name``.
    """
    saved = saved_adapter(config.name, config.revision)
    goes_on = saved is not None and config.adapter == "continue"
    base = config if saved is None else config_of_base(config, saved)
    frozen = goes_on or config.lora.r > 0 or not trained
    config.require_holding(frozen)
    with torch.device("meta"):
        model = _base(base, head, dtype_of(base, frozen and half), _attention(config, device))
        disable_dropout(model)
        if config.gradient_checkpointing:
            options = {"use_reentrant": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
            model.enable_input_require_grads()
        model = _adapted(model, config, saved if goes_on else None, head)
        if head:
            freeze_unreached(model)
        if packs and model.config._attn_implementation in PACKED:
            enable_packing(body_of(model, head))
        keep_less(body_of(model, head))
        if dtype is not None:
            model.to(dtype)
        if not trained:
            model.requires_grad_(False)
    mode = mode or FakeTensorMode()
    give_sizes(model, mode)
    return Paper(model, mode, head, is_own_reference=config.lora.r > 0 and not goes_on)


def give_sizes(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of those of ``meta``, which autocast leaves as they are."""
    made: dict[int, Tensor] = {}  # tied ones stay one

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                like = torch.empty(tensor.shape, dtype=tensor.dtype)
                wanted = tensor.requires_grad
                is_weight = isinstance(tensor, nn.Parameter)
                made[id(tensor)] = nn.Parameter(like, wanted) if is_weight else like
        return made[id(tensor)]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            held.update({name: fake(x) for name, x in held.items() if x is not None})


def body_of(model: Any, head: bool) -> nn.Module:
    """The transformer, adapters inside it included."""
    return backbone(model) if head else unwrapped(model)


def _base(config: ModelConfig, head: bool, dtype: torch.dtype, attention: str) -> Any:
    described = describe(config)
    auto: Any = AutoModel
    if head and config.name not in (TINY, EMBEDDED) and not config.name.endswith(".gguf"):
        options = {"trust_remote_code": config.trust_remote_code, "revision": config.revision}
        auto = language_model_class(config.name, **{k: v for k, v in options.items() if v})
    elif head:
        auto = AutoModelForCausalLM
    given = {"dtype": dtype, "attn_implementation": attention}
    model = auto.from_config(described, trust_remote_code=config.trust_remote_code, **given)
    if config.quantization != "none":
        hold_quantized(model, config.quantization, dtype)
    if head:
        return model
    model = language_model(model)
    if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
        model = model.base_model
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def describe(config: ModelConfig) -> Any:
    """What ``config.json`` says, or what stands for it.

    Raises:
        ValueError: there is none.
    """
    if config.name == TINY:
        return tiny_config()
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    location = str(embedded_model_dir()) if config.name == EMBEDDED else config.name
    if config.revision is not None:
        options["revision"] = config.revision
    if config.name.endswith(".gguf"):
        path = Path(config.name)
        location, options = str(path.parent), {"gguf_file": path.name}
    try:
        return AutoConfig.from_pretrained(location, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.name={config.name!r}: its config.json is not here, and nothing else says how"
            f" large the model is: {error}"
        ) from error


def _attention(config: ModelConfig, device: str) -> str:
    if config.attn_implementation != "auto":
        return config.attn_implementation
    return "eager" if device == "cpu" else "sdpa"


def _adapted(model: Any, config: ModelConfig, saved: SavedAdapter | None, head: bool) -> Any:
    if saved is not None:
        options = saved.config
        options.inference_mode = False
        return get_peft_model(model, options)
    if not config.lora.r:
        return model
    return add_lora(model, config.lora, "CAUSAL_LM" if head else "FEATURE_EXTRACTION")


def period_of(paper: Paper) -> int | None:
    """After how many layers the same come again; None where they do not, or are few."""
    layers = layers_of(paper)
    kinds = getattr(paper.config, "layer_types", None) or [""] * len(layers)
    seen = [
        (kind, tuple((n, tuple(p.shape)) for n, p in layer.named_parameters()))
        for kind, layer in zip(kinds, layers, strict=False)
    ]
    for period in range(1, len(seen) // 4):
        if all(a == b for a, b in zip(seen, seen[period:], strict=False)):
            return period
    return None


def layers_of(paper: Paper) -> nn.ModuleList:
    """Its layers, one below the other."""
    return getattr(*_holder_of_layers(body_of(paper.model, paper.has_head)))


def _holder_of_layers(body: nn.Module) -> tuple[nn.Module, str]:
    """The module that has the list of layers, and what it is called there."""
    lists = [
        (part, name, len(child))
        for part in body.modules()
        for name, child in part.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    holder, name, _ = max(lists, key=lambda found: found[2])
    return holder, name
