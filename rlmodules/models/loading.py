"""One place that turns a model config into a model, its tokenizer and its LoRA adapters."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
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

from rlmodules.models import embedded, offload
from rlmodules.models.adapters import add_lora, require_trainable
from rlmodules.models.checkpoint import CheckpointError, check_finite, leave_file, load_whole
from rlmodules.models.config import DTYPES, ModelConfig
from rlmodules.models.media import language_model, language_model_class
from rlmodules.models.merging import merge_adapters
from rlmodules.models.modes import disable_dropout
from rlmodules.models.quantized import (
    compute_dequantized,
    finite_before,
    held_as,
    in_memory_options,
    loading_options,
    require_held,
    require_quantizing,
    require_wide,
)
from rlmodules.models.saved_adapters import SavedAdapter, public_name, saved_adapter


def has_native_bf16() -> bool:
    """Whether matrix products in bfloat16 are faster here than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(precision: str, half: bool | None = None) -> str:
    """Lightning's ``precision``; ``auto`` is bf16-mixed where bf16 is native, else 32-true.

    Args:
        half: whether it is native; default: as it is here.
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if (has_native_bf16() if half is None else half) else "32-true"


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
    if config.name == embedded.TINY:
        return embedded.tiny_tokenizer()
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


def load_model(config: ModelConfig, *, trained: bool = True) -> nn.Module:
    """The causal language model that ``config`` names, with dropout off and adapters on if asked;
    held as frozen weights are, unless it is to be ``trained``.

    Raises:
        ValueError: nothing loadable is at ``model.name``, or ``model.lora`` does not fit it.
    """
    return _assembled(config, AutoModelForCausalLM, "CAUSAL_LM", trained)


def load_backbone(config: ModelConfig) -> nn.Module:
    """The transformer that reads text, decoder or encoder, headless; else as ``load_model``."""
    return _assembled(config, AutoModel, "FEATURE_EXTRACTION")


def _assembled(config: ModelConfig, auto: Any, task: str, trained: bool = True) -> nn.Module:
    """Base, and adapters that it has or is to get."""
    saved = saved_adapter(config.name, config.revision)
    goes_on = saved is not None and config.adapter == "continue"
    frozen = goes_on or config.lora.r > 0 or not trained
    config.require_holding(frozen)
    require_quantizing(config.quantization)
    offload.require_gpu(config.activation_offload)
    model: Any = _base(config, saved, auto, frozen=frozen)
    if auto is AutoModel:
        model = language_model(model)
        if isinstance(model, PreTrainedModel) and model.get_output_embeddings() is not None:
            model = model.base_model  # the embedded models come with a head
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # a head of BERT's that nothing here reads
    disable_dropout(model)
    _save_activations(model, config)
    if saved is not None:
        if goes_on:
            require_wide(model, saved.config.modules_to_save or ())
            return saved.go_on(model, config.lora)
        model = merge_adapters(saved.put_on(model))
    if not config.lora.r:
        return model
    model = add_lora(model, config.lora, task)
    if saved is None:
        model.active_peft_config.revision = public_name(config.name, config.revision)[1]
    return model


def _save_activations(model: Any, config: ModelConfig) -> None:
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if config.activation_offload:
        offload.offload_activations(model)


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
    dtype = dtype_of(config, frozen and has_native_bf16())
    attention = config.attn_implementation
    if attention == "auto" and not torch.cuda.is_available():
        attention = "eager"
    options = _hub_options(config)
    if attention != "auto":
        options["attn_implementation"] = attention
    in_file = config.name != embedded.TINY and not config.name.endswith(".gguf")
    if in_file:
        options |= loading_options(
            _location(config), config.quantization, dtype, _hub_options(config)
        )
    try:
        if not in_file:
            tiny = config.name == embedded.TINY
            loaded: Any = embedded.tiny_model() if tiny else embedded.load_gguf(Path(config.name))
            model = _quantized(loaded[0].to(dtype), config, dtype)
            model.set_attn_implementation("sdpa" if attention == "auto" else attention)
        else:
            if auto is AutoModelForCausalLM:
                auto = language_model_class(_location(config), **_hub_options(config))
            with nullcontext() if config.quantization == "none" else finite_before():
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
    if config.quantization != "none":
        leave_file(model)
    compute_dequantized(model, dtype)
    require_held(model, config.quantization)
    model.name_or_path = public_name(config.name)[0]  # adapters write it down as their base
    return model


def _quantized(model: Any, config: ModelConfig, dtype: torch.dtype) -> Any:
    """``model``, which is in no file that transformers could quantize, as ``config`` wants it."""
    if config.quantization == "none":
        return model
    options = in_memory_options(config.quantization, dtype)
    with finite_before():
        quantized: Any = load_whole(
            type(model), None, config=model.config, state_dict=model.state_dict(), **options
        )
    quantized.generation_config = model.generation_config
    return quantized


def prepare_given(model: nn.Module, config: ModelConfig, task: str = "CAUSAL_LM") -> nn.Module:
    """A model that was handed over, as ``config`` wants it: adapters merged, or new ones added.

    Args:
        task: PEFT's task type.

    Raises:
        ValueError: it would not be trained as it looks (``require_trainable``), or holds no
            numbers.
    """
    check_finite(model)
    offload.require_gpu(config.activation_offload)
    held = held_as(model)
    if config.quantization not in ("none", held):
        raise ValueError(
            f"model.quantization={config.quantization}, but the given model's layers are held as"
            f" {held}: load it with quantization_config=BitsAndBytesConfig(...), or by model.name"
        )
    if held != "none":
        _require_frozen(model, config, held)
        compute_dequantized(model)
    if config.adapter == "merge":
        if not isinstance(model, PeftModel):
            raise ValueError(
                "model.adapter=merge, but the given model is no PeftModel: leave it out"
            )
        model = merge_adapters(model)
    _save_activations(model, config)
    if config.lora.r:
        model = add_lora(model, config.lora, task)
    require_trainable(model, has_head=task != "CAUSAL_LM")
    return model


def _require_frozen(model: nn.Module, config: ModelConfig, held: str) -> None:
    if config.adapter == "merge":
        raise ValueError(
            f"model.adapter=merge, but the given model is held in {held}, and the sum would be"
            " rounded: give the merged model that export.merge=true writes"
        )
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if trained and not config.lora.r and not isinstance(model, PeftModel):
        raise ValueError(
            f"the given model is held in {held}, of which {trained[0]} and the like alone would be"
            " trained: train adapters (model.lora.r=16)"
        )


def dtype_of(config: ModelConfig, half: bool) -> torch.dtype:
    """The type of the weights of ``config``'s model.

    Args:
        half: they are frozen, and the device computes in bfloat16.
    """
    if config.dtype != "auto":
        return DTYPES[config.dtype]
    return torch.bfloat16 if half and config.name != embedded.TINY else torch.float32


def _location(config: ModelConfig) -> str:
    return str(embedded.embedded_model_dir()) if config.name == embedded.EMBEDDED else config.name


def _hub_options(config: ModelConfig) -> dict[str, Any]:
    options = {"trust_remote_code": config.trust_remote_code, "revision": config.revision}
    return {name: value for name, value in options.items() if value is not None}
