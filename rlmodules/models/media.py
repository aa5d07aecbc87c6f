"""Models that also see or hear, on text alone.

No text reaches a vision tower, so nothing is learned there: its weights are neither trained nor
adapted, stay out of the optimizer and of checkpoints, and are exported as they were.
"""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils import cached_file

from rlmodules.models.heads import backbone, unwrapped

OTHER_MEDIA = re.compile(r"vision|visual|image|video|audio|speech")
"""Names of parts for them, which some backbones have inside (Phi-4-multimodal)."""
PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files beside a model that say how images and sounds become its inputs."""


def language_model_class(location: str, **options: Any) -> Any:
    """The auto class that loads a language model from ``location``.

    transformers takes the language model alone out of some checkpoints (Llama 4, Qwen3.5), the
    whole out of others (Gemma 3), and refuses the rest (Qwen-VL, LLaVA), which another class loads.
    That one also loads whole those of which the language model alone could not be loaded again
    (Llama 3.2 Vision).
    """
    kind = type(AutoConfig.from_pretrained(location, **options))
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM
    language: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    alone = language is not None and language.config_class in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForCausalLM if alone else AutoModelForImageTextToText


def language_model(body: Any) -> nn.Module:
    """The part of a headless model that reads text; one that reads text alone is that part.

    Raises:
        ValueError: transformers could not load it again, once it is exported alone.
    """
    if body.config.get_text_config() is body.config:
        return body
    found = body.get_decoder()
    if found.get_output_embeddings() is not None:
        found = backbone(found)
    if type(found.config) not in MODEL_MAPPING:
        raise ValueError(
            f"the language model of a {type(body).__name__} cannot be loaded by itself, so no"
            " reward model can be made of it: take a model of text"
        )
    if getattr(found.config, "use_bidirectional_attention", None) is True:
        # PaliGemma's, for its images; what it does to text alone would depend on the kernel.
        found.config.use_bidirectional_attention = False
        for part in found.modules():
            if hasattr(part, "is_causal"):
                part.is_causal = True
    return found


def unreached(model: nn.Module) -> list[str]:
    """Names of the parts of a language model that no text reaches, the outermost of each."""
    inner = unwrapped(model)
    parts = [backbone(inner), inner.get_output_embeddings(), inner.get_input_embeddings()]
    reached = {id(p) for part in parts if part is not None for p in part.parameters()}
    words = {id(p) for part in parts[1:] if part is not None for p in part.parameters()}
    names: list[str] = []
    for name, module in inner.named_modules():
        own = [id(p) for p in module.parameters()]
        inside = any(name.startswith(f"{outer}.") for outer in names)
        alien = OTHER_MEDIA.search(name.rpartition(".")[2]) and words.isdisjoint(own)
        if name and own and not inside and (alien or reached.isdisjoint(own)):
            names.append(name)
    return names


def freeze_unreached(model: nn.Module) -> None:
    """Train nothing of ``model`` that no text reaches, and say so."""
    inner = unwrapped(model)
    parts = [(name, inner.get_submodule(name)) for name in unreached(model)]
    if parts:
        count = sum(p.numel() for _, part in parts for p in part.parameters())
        for _, part in parts:
            part.requires_grad_(False)
        warnings.warn(
            f"no text reaches {', '.join(name for name, _ in parts)} of"
            f" {type(inner).__name__}: their {count:,} parameters stay as they are",
            stacklevel=2,
        )


def unreached_pattern(model: nn.Module) -> str | None:
    """A regex for the names of modules that no text reaches, for PEFT; None if all are reached."""
    try:
        names = unreached(model)
    except ValueError:  # no head: what reads text is all there is
        return None
    return rf"({'|'.join(map(re.escape, names))})(\..*)?" if names else None


def copy_processors(model: nn.Module, dirpath: Path) -> None:
    """What makes inputs of images and sounds, beside an exported model that takes them."""
    source = getattr(unwrapped(model).config, "_name_or_path", "")
    for name in PROCESSORS if source and unreached(model) else ():
        file = cached_file(
            source,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is not None:
            shutil.copyfile(file, dirpath / name)
