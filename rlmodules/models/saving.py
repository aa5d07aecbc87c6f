"""Language models on disk, in Hugging Face format."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlmodules.models.heads import unwrapped
from rlmodules.models.media import copy_processors
from rlmodules.models.vocabulary import generation_settings


def save_language_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, dirpath: Path, *, merge: bool | None
) -> None:
    """Write ``AutoModelForCausalLM.from_pretrained(dirpath)`` and its tokenizer.

    Args:
        merge: under LoRA, write the merged model instead of the adapter.
    """
    written = merged(model, bool(merge))
    settings = generation_settings(written, tokenizer)
    if settings is not None:
        unwrapped(written).generation_config = settings
        settings.save_pretrained(dirpath)  # which an adapter's folder would lack
    written.save_pretrained(dirpath)
    tokenizer.save_pretrained(dirpath)
    copy_processors(model, dirpath)


def merged(model: Any, merge: bool = True) -> Any:
    """``model`` with its adapters merged, if it has any.

    Merging changes the base weights in place, in their own (perhaps low) precision: it is done to a
    float32 copy, so that the model in training stays what it is and nothing is rounded.
    """
    if merge and hasattr(model, "merge_and_unload"):
        return copy.deepcopy(model).float().merge_and_unload()
    return model
