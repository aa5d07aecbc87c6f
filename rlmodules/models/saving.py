"""Language models on disk, in Hugging Face format.

A weight is made, merged with adapters, moved to the CPU and rounded, at the moment at which its
shard is written: besides the model no more than one shard is in memory.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.conversion_mapping import get_model_conversion_mapping

from datamodules.atomic import ordinary_mode
from rlmodules.models.heads import unwrapped
from rlmodules.models.media import copy_processors
from rlmodules.models.merging import MERGED, adapted_layers, merged_layer, plain_layer, unties
from rlmodules.models.older_names import write_older_names
from rlmodules.models.quantized import (
    config_without_quantization,
    empty_layer,
    quantization_of_layer,
    quantized_layers,
)
from rlmodules.models.saved_adapters import public_name
from rlmodules.models.vocabulary import generation_settings

SHARD = "5GB"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VALUE_HEAD = Path("value_head") / "value_head.safetensors"


class Weights(dict[str, Tensor]):
    """Weights by name, of which each is made when it is taken out; until then it has a shape alone.

    Args:
        shapes: tensors of their shapes and types.
        make: what makes each of them.
    """

    def __init__(self, shapes: dict[str, Tensor], make: Callable[[str], Tensor]) -> None:
        super().__init__({name: like.to("meta") for name, like in shapes.items()})
        self._make = make

    def inside(self, prefix: str, **more: Tensor) -> "Weights":
        """The same, named as parts of a larger model, which has ``more`` besides."""
        shapes = {f"{prefix}.{name}": like for name, like in self.items()} | more
        make = self._make
        return Weights(
            shapes, lambda n: more[n] if n in more else make(n.removeprefix(f"{prefix}."))
        )

    def pop(self, name: str) -> Tensor:  # type: ignore[override]  # transformers' shards call this
        like = super().pop(name)
        return self._make(name).detach().to("cpu", like.dtype).contiguous()


def save_language_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dirpath: Path,
    *,
    merge: bool | None = None,
    dtype: str | None = None,
) -> None:
    """Write ``AutoModelForCausalLM.from_pretrained(dirpath)`` and its tokenizer.

    Args:
        merge: under LoRA, write the merged model instead of the adapter; default: only where the
            adapter's base is itself a merged one, which is saved nowhere.
        dtype: of the weights; default: what they were trained in.
    """
    if merge is None:
        merge = is_on_merged(model)
    settings = generation_settings(model, tokenizer)
    if settings is not None:
        unwrapped(model).generation_config = settings
        settings.save_pretrained(dirpath)  # which an adapter's folder would lack
    if isinstance(model, PeftModel) and not merge:
        save_adapter(model, dirpath, dtype_of(dtype))
    else:
        save_plain(model, dirpath, dtype=dtype_of(dtype))
    tokenizer.save_pretrained(dirpath)
    copy_processors(model, dirpath)
    write_older_names(dirpath)


def dtype_of(name: str | None) -> torch.dtype | None:
    """
    Raises:
        ValueError: it is no type that weights are exported in.
    """
    if name not in (None, *DTYPES):
        raise ValueError(f"export.dtype={name!r}: use one of {list(DTYPES)}, or null for the type"
                         " that the weights were trained in")  # fmt: skip
    return None if name is None else DTYPES[name]


def require_exportable(model: Any, merge: bool | None, dtype: str | None) -> None:
    """
    Raises:
        ValueError: there is nothing to merge, adapters alone would be of no use, or there is no
            such type.
    """
    dtype_of(dtype)
    if merge and not isinstance(model, PeftModel):
        raise ValueError(
            "export.merge=true: there are no adapters to merge; leave it out, or train some"
            " (model.lora.r=16)"
        )
    if merge is False:
        require_base(model)


def require_base(model: nn.Module) -> None:
    """
    Raises:
        ValueError: the base of its adapters can be loaded from nowhere.
    """
    if is_on_merged(model):
        raise ValueError(
            "export.merge=false: the adapters are on a model that another adapter was merged into,"
            " and that is saved nowhere: set export.merge=true (in Python: merge=True) to write the"
            " whole model"
        )


def is_on_merged(model: nn.Module) -> bool:
    """Whether its adapters are on a model that exists in memory alone."""
    return isinstance(model, PeftModel) and unwrapped(model).name_or_path == MERGED


def save_adapter(model: PeftModel, dirpath: Path, dtype: torch.dtype | None) -> None:
    """The active adapter, as PEFT reads it; its base is named so that others find it."""
    require_base(model)
    (name,) = model.active_adapters
    weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    dirpath.mkdir(parents=True, exist_ok=True)
    path = dirpath / "adapter_model.safetensors"
    weights = {n: w.detach().to("cpu", dtype or w.dtype, copy=True).contiguous()
               for n, w in weights.items()}  # fmt: skip
    save_file(weights, path, {"format": "pt"})
    ordinary_mode(path)
    config = copy.deepcopy(model.active_peft_config)
    config.inference_mode = True
    if config.base_model_name_or_path:
        named = public_name(config.base_model_name_or_path, config.revision)
        config.base_model_name_or_path, config.revision = named
    config.save_pretrained(str(dirpath))


def plain_weights(model: nn.Module, dtype: torch.dtype | None = None) -> Weights:
    """The weights of ``model`` without adapters, into which those that are active are merged.

    Args:
        dtype: of floating-point weights; default: their own. Merging is done in float32.
    """
    inner = unwrapped(model)
    layers: dict[str, Any] = adapted_layers(model) if isinstance(model, PeftModel) else {}
    quantized = quantized_layers(inner)
    layers |= {n: part for n, part in quantized.items() if not n.startswith(tuple(layers))}
    inside = tuple(f"{name}." for name in layers)
    found = {name: w for name, w in inner.state_dict().items() if not name.startswith(inside)}
    layer_of = {}
    for name, layer in layers.items():
        below = plain_layer(layer)
        if quantization_of_layer(below) != "none":
            below = empty_layer(below, inner.dtype)
        for part, weight in below.state_dict().items():
            layer_of[f"{name}.{part}"] = name
            found[f"{name}.{part}"] = weight
    merged: dict[str, dict[str, Tensor]] = {}  # the last layer

    def make(name: str) -> Tensor:
        layer = layer_of.get(name)
        if layer is None:
            return found[name]
        if layer not in merged:
            merged.clear()
            merged[layer] = merged_layer(layers[layer]).state_dict()
        return merged[layer][name.removeprefix(f"{layer}.")]

    shapes = {}
    for name, weight in found.items():
        wanted = dtype if weight.is_floating_point() else None
        shapes[name] = torch.empty_like(weight, device="meta", dtype=wanted)
    return Weights(shapes, make)


def save_value_head(head: nn.Module, dirpath: Path) -> None:
    """Write a critic in a folder of its own, for who serves a model loads all weights beside it."""
    path = dirpath / VALUE_HEAD
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: w.detach().float().cpu() for name, w in head.state_dict().items()}, path)
    ordinary_mode(path)


def load_value_head(head: nn.Module, dirpath: Path) -> None:
    """Take the critic's weights out of a folder that PPO exported.

    Raises:
        FileNotFoundError: it holds none.
    """
    beside = dirpath / VALUE_HEAD.name  # as earlier versions wrote it
    path = beside if beside.is_file() else dirpath / VALUE_HEAD
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, so no PPO wrote {dirpath}")
    head.load_state_dict(load_file(path))


def save_plain(
    model: nn.Module,
    dirpath: Path,
    *,
    dtype: torch.dtype | None = None,
    twin: Any = None,
    weights: Weights | None = None,
) -> None:
    """Write ``plain_weights(model)`` in the format of their class.

    Args:
        twin: model of the class that is written, without weights; default: that of ``model``.
        weights: those of ``twin``.
    """
    inner: Any = unwrapped(model)
    twin = twin_of(model) if twin is None else twin
    weights = plain_weights(model, dtype) if weights is None else weights
    twin.to(dtype=dtype or inner.dtype)  # the config says it
    state: dict[str, Tensor] = weights
    conversions = getattr(inner, "_weight_conversions", None)
    if conversions or get_model_conversion_mapping(twin, add_legacy=False):
        twin._weight_conversions = conversions
        state = {name: weights.pop(name) for name in list(weights)}  # it makes one of several
    twin.save_pretrained(dirpath, state_dict=state, max_shard_size=SHARD)
    ordinary_mode(*dirpath.glob("model*.safetensors"))


def twin_of(model: nn.Module) -> Any:
    """A model of the class below the adapters of ``model``, of shapes without numbers."""
    inner: Any = unwrapped(model)
    config = config_without_quantization(inner.config)
    if isinstance(model, PeftModel) and unties(model):
        config.get_text_config().tie_word_embeddings = False
    with torch.device("meta"):
        twin = type(inner)(config)
    if inner.can_generate():
        twin.generation_config = inner.generation_config
    return twin
