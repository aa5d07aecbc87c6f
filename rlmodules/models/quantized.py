"""Models whose linear layers are held in 4 or 8 bits, below adapters that are trained (QLoRA,
Dettmers et al. 2023, arXiv:2305.14314).

bitsandbytes quantizes, through transformers. Computed with are the dequantized weights, and those
alone, where tokens are written, scored and trained on: bitsandbytes' own int8 product rounds the
activations too (``int8.py``), and on CPUs its 4-bit layers are packed, the first time that no
gradient is asked for, for a product that has none.
"""

import copy
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils.quantization_config import FineGrainedFP8Config, Mxfp4Config

from rlmodules.models.checkpoint import CheckpointError

INSTALL = "pip install 'rlmodules[quantization]'"
UNPACKED: dict[str, Any] = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
"""Kinds of checkpoints that transformers dequantizes as it loads them."""


def require_quantizing(quantization: str) -> None:
    """
    Raises:
        ValueError: this machine cannot, because bitsandbytes is missing or does not work.
    """
    if quantization == "none":
        return
    option = f"model.quantization={quantization}"
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"{option} needs bitsandbytes: {INSTALL}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        try:
            from bitsandbytes import functional

            sample = torch.ones(64, 64, device=device)
            if quantization == "4bit":
                functional.dequantize_4bit(*functional.quantize_4bit(sample, quant_type="nf4"))
            else:
                functional.int8_vectorwise_quant(sample.half())
        except Exception as error:  # whatever a library without its kernels makes of it
            raise ValueError(
                f"{option} does not work on this machine's {device}: bitsandbytes said"
                f" {type(error).__name__}: {error}. Leave it out, or install a bitsandbytes that"
                f" has kernels for it: {INSTALL}"
            ) from error


def loading_options(
    location: str, quantization: str, dtype: torch.dtype, hub: dict[str, Any]
) -> dict[str, Any]:
    """Of ``from_pretrained``, for a model that is to be held as ``quantization`` says.

    Args:
        location: hub id or folder.
        hub: options for reading its config.

    Raises:
        ValueError: the checkpoint is quantized already, and not like that.
    """
    try:
        config = PretrainedConfig.get_config_dict(location, **hub)[0]
    except OSError:
        config = {}  # loading will say what is wrong
    stored = quantization_of(config)
    if stored in UNPACKED and quantization == "none":
        return {"quantization_config": UNPACKED[stored](dequantize=True)}
    _require_stored(stored, quantization, "its config.json says that it")
    if quantization == "none":
        return {}
    place = {"device_map": {"": "cpu"}}  # Lightning moves it, to the device of this process
    if stored != "none":
        return place
    return place | {"quantization_config": _settings(quantization, dtype)}


def in_memory_options(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """Of ``from_pretrained``, for weights that were made or read already."""
    place: dict[str, Any] = {"device_map": {"": "cpu"}, "dtype": dtype}
    return place | {"quantization_config": _settings(quantization, dtype)}


def _require_stored(stored: str, quantization: str, who: str) -> None:
    if stored == quantization or (stored == "none" and quantization != "none"):
        return
    if stored in ("4bit", "8bit"):
        remedy = f"set model.quantization={stored} and train adapters (model.lora.r=16)"
    else:
        remedy = "give the model that it was made of; model.quantization=4bit quantizes that"
    raise ValueError(f"model.quantization={quantization}, but {who} is quantized as {stored}:"
                     f" {remedy}")  # fmt: skip


def _settings(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def quantization_of(config: dict[str, Any]) -> str:
    """How a config.json says that its weights are held: ``none``, ``4bit``, ``8bit`` or the name of
    another method."""
    found = config.get("quantization_config") or config.get("compression_config")
    if not found:
        return "none"
    found = found if isinstance(found, dict) else found.to_dict()
    method = str(getattr(found.get("quant_method"), "value", found.get("quant_method")))
    if "bitsandbytes" in method or found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "4bit" if found.get("load_in_4bit") else "8bit"
    return method


def held_as(model: nn.Module) -> str:
    """What ``model.quantization`` would make of a model that is like ``model``.

    Raises:
        ValueError: its layers are quantized by something else than bitsandbytes.
    """
    kinds = {quantization_of_layer(part) for part in model.modules()} - {"none"}
    config: Any = getattr(model, "config", None)
    said = "none" if kinds or config is None else quantization_of(config.to_dict())
    if said not in ("none", "4bit", "8bit", *UNPACKED) or len(kinds) > 1:
        _require_stored(said if not kinds else "+".join(sorted(kinds)), "none", "the given model")
    return next(iter(kinds), "none")


def quantization_of_layer(layer: nn.Module) -> str:
    """``4bit`` or ``8bit`` where bitsandbytes holds the weight, else ``none``."""
    weight = layer._parameters.get("weight") if isinstance(layer, nn.Linear) else None
    return {"Params4bit": "4bit", "Int8Params": "8bit"}.get(type(weight).__name__, "none")


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """By name."""
    return {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and quantization_of_layer(part) != "none"
    }


def require_held(model: Any, quantization: str) -> None:
    """Warns of large parts that stay wide, such as the fused experts of a layer.

    Raises:
        ValueError: ``model`` is not held like that, having no linear layers.
    """
    if held_as(model) != quantization:
        raise ValueError(
            f"model.quantization={quantization}: {type(model).__name__} has no linear layers that"
            " bitsandbytes could hold: leave it out"
        )
    if quantization == "none":
        return
    held = sum(part.in_features * part.out_features for part in quantized_layers(model).values())
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    outer = {id(weight) for end in ends if end is not None for weight in end.parameters()}
    wide = {
        name: weight.numel()
        for name, weight in model.named_parameters()
        if weight.is_floating_point() and id(weight) not in outer
    }
    if (left := sum(wide.values())) > (held + left) / 10:
        largest = re.sub(r"(?<=\.)\d+(?=\.)", "*", max(wide, key=lambda name: wide[name]))
        warnings.warn(
            f"model.quantization={quantization} leaves {left:,} of {held + left:,} numbers as they"
            f" are, {largest} the largest: bitsandbytes holds linear layers alone",
            stacklevel=2,
        )


def require_wide(model: nn.Module, names: Collection[str]) -> None:
    """
    Args:
        names: of modules that an adapter has copies of, to train them.

    Raises:
        ValueError: one of them is quantized, and cannot be trained.
    """
    for layer in quantized_layers(model):
        for name in names:
            if f".{layer}.".find(f".{name}.") >= 0:
                raise ValueError(
                    f"model.quantization holds {layer}, which the adapter trains as a whole"
                    f" (modules_to_save={name}): leave model.quantization out"
                )


def compute_dequantized(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Have the quantized layers of ``model`` compute as this module says; once is enough.

    Args:
        dtype: that 4-bit layers compute in; default: as they do.
    """
    for layer in quantized_layers(model).values():
        if quantization_of_layer(layer) == "8bit":
            from rlmodules.models.int8 import Int8Linear

            if not isinstance(layer, Int8Linear):
                Int8Linear.take_over(layer)
            continue
        layer.support_avx512bf16_for_cpu = False  # packs the weights for a product without gradient
        if dtype is not None:
            layer.compute_dtype, layer.compute_type_is_set = dtype, True


def wide_weight(layer: Any) -> Tensor:
    """[out, in], the weight that a quantized layer computes with."""
    if quantization_of_layer(layer) == "8bit":
        return layer.wide(torch.float32)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def plain_linear(layer: Any) -> nn.Linear:
    """A copy of a quantized layer as an ordinary one, in float32 on the CPU."""
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight = nn.Parameter(wide_weight(layer).to("cpu", torch.float32), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().to("cpu", torch.float32), requires_grad=False)
    return plain


def empty_layer(quantized: Any, dtype: torch.dtype) -> nn.Module:
    """What the model's class has where ``quantized`` is, without numbers."""
    shape, bias = (quantized.in_features, quantized.out_features), quantized.bias is not None
    return as_in_class(nn.Linear(*shape, bias, device="meta", dtype=dtype), quantized)


def config_without_quantization(config: Any) -> Any:
    """A copy of a model's config that says nothing of how its weights are held."""
    copied = copy.deepcopy(config)
    for part in (copied, copied.get_text_config()):
        vars(part).pop("quantization_config", None)
    return copied


def as_in_class(layer: nn.Linear, quantized: Any) -> nn.Module:
    """``layer`` as the model's class has it: GPT-2's are transposed until they are quantized."""
    if getattr(quantized, "source_cls", None) is not Conv1D:
        return layer
    with torch.device("meta"):
        own: Any = Conv1D(layer.out_features, layer.in_features)
    own.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
    own.bias = layer.bias
    return own


@contextmanager
def finite_before() -> Iterator[None]:
    """Refuse weights that are not finite before they are quantized: rounding would hide them.

    Raises:
        CheckpointError: names them.
    """
    from transformers.integrations.bitsandbytes import Bnb4bitQuantize, Bnb8bitQuantize

    kinds: tuple[Any, ...] = (Bnb4bitQuantize, Bnb8bitQuantize)
    plain = [kind.convert for kind in kinds]
    wrong: list[str] = []
    for kind, convert in zip(kinds, plain, strict=True):
        kind.convert = _noting(convert, wrong)
    try:
        yield
    finally:
        for kind, convert in zip(kinds, plain, strict=True):
            kind.convert = convert
    if wrong:
        raise CheckpointError.not_finite(wrong)


def _noting(convert: Any, wrong: list[str]) -> Any:
    def noting(self: Any, input_dict: dict[str, Any], *args: Any, **options: Any) -> Any:
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            least, most = torch.aminmax(weight)
            if not (least.isfinite() and most.isfinite()):
                wrong.append(name)
        return convert(self, input_dict, *args, **options)

    return noting
