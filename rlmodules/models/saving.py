"""Language models on disk, in Hugging Face format."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase


def save_language_model(
    model: Any, tokenizer: PreTrainedTokenizerBase, dirpath: Path, *, merge: bool
) -> None:
    """Write ``AutoModelForCausalLM.from_pretrained(dirpath)`` and its tokenizer.

    Args:
        merge: under LoRA, write the merged model instead of the adapter.
    """
    merged(model, merge).save_pretrained(dirpath)
    tokenizer.save_pretrained(dirpath)


def merged(model: Any, merge: bool = True) -> Any:
    """``model`` with its adapters merged, if it has any.

    Merging changes the base weights in place, in their own (perhaps low) precision: it is done to a
    float32 copy, so that the model in training stays what it is and nothing is rounded.
    """
    if merge and hasattr(model, "merge_and_unload"):
        return copy.deepcopy(model).float().merge_and_unload()
    return model
