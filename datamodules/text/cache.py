"""Tensors that are expensive to make and the same next time: kept in the user's cache directory."""

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.atomic import replacing
from datamodules.ends import end_ids


def digest(*parts: Any) -> str:
    """A name for plain values: equal values have equal names, in this run and in the next."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def plain(value: Any) -> Any:
    """``value``, in which anything but plain values goes by its type's name."""
    return json.loads(json.dumps(value, default=lambda x: type(x).__name__))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes with anything that changes a text's tokens."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    inside = fast.to_str() if fast is not None else tokenizer.get_vocab()
    template, specials = tokenizer.chat_template, tokenizer.special_tokens_map
    return digest(type(tokenizer).__name__, inside, template, specials, sorted(end_ids(tokenizer)))


def _path(kind: str, key: str) -> Path:
    return user_cache_path("rlmodules") / kind / f"{key}.safetensors"


def load_cached(kind: str, key: str) -> dict[str, Tensor] | None:
    """What ``cached`` keeps under ``key``; None if that is nothing, or cannot be read."""
    try:
        return load_file(_path(kind, key))
    except (OSError, SafetensorError):
        return None


def cached(kind: str, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` returned under this ``key`` before, on this machine; else make it and keep it.

    A cache that cannot be read is made again; one that cannot be written costs a warning.
    """
    if (tensors := load_cached(kind, key)) is not None:
        return tensors
    tensors, path = make(), _path(kind, key)
    try:
        with replacing(path) as partial:
            save_file(tensors, partial)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{path} could not be written ({error}); it will be made again", stacklevel=2)
    return tensors
