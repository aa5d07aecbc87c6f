"""What model and tokenizer must agree on: which tokens there are, and which end a response."""

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from datamodules.ends import end_ids, note_model_ends
from rlmodules.models.heads import unwrapped

UNUSED = ("unk", "image", "video", "vision", "audio", "boi", "eoi", "boa", "eoa")
"""In the names of special tokens that ordinary text does without, ``image_token`` for example."""


def match_tokenizer(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with tokens that ``model`` lacks; have it know the model's end tokens.

    A model may know more ids than the tokenizer (many vocabularies are padded). The tokenizer may
    know more where text does not use them: placeholders of images and sounds, which text-only
    models of a family leave out (Gemma 3 1B), and a token for unknown characters, which tokenizers
    of bytes never need. A text that holds one is refused when it comes (``check_ids``).

    Raises:
        ValueError: says how many tokens and embeddings there are.
    """
    known, vocabulary = vocabulary_size(model), tokenizer.get_vocab()
    roles = {name: getattr(tokenizer, name) for name in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    unused = {t for n, t in roles.items() if any(part in n for part in UNUSED)}
    unused -= {t for n, t in roles.items() if n in ("bos_token", "eos_token", "pad_token")}
    beyond = {i: t for t, i in vocabulary.items() if i >= known and t not in unused}
    if beyond:
        some = ", ".join(f"{token!r} ({i})" for i, token in sorted(beyond.items())[:3])
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeddings for {known}: it does"
            f" not know {len(beyond)} of them, such as {some}. Use the tokenizer that belongs to"
            " the model, or first enlarge the model, with"
            f" model.resize_token_embeddings({max(beyond) + 1}), and save both"
        )
    match_ends(model, tokenizer)


def vocabulary_size(model: Any) -> int:
    """How many ids ``model`` reads and, where it has a head, predicts."""
    inner = unwrapped(model)
    ends = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    return min(len(end.weight) for end in ends if end is not None)


def absent_ids(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, predicted: int
) -> Tensor | None:
    """Those of the ``predicted`` ids of ``model`` that no text holds; None where there are none.

    Vocabularies are padded to round sizes, and tokenizers have gaps. Such ids are never drawn, but
    count in log-probabilities: what is scored is then the distribution that other engines compute
    of the same weights, and a given text may hold any id.
    """
    known, ends = vocabulary_size(model), match_ends(model, tokenizer)
    missing = frozenset(range(known, predicted))
    if tokenizer is not None:
        missing = _gaps(tokenizer, len(tokenizer), known, predicted) - ends
    return torch.tensor(sorted(missing)) if missing else None


@lru_cache(maxsize=8)
def _gaps(
    tokenizer: PreTrainedTokenizerBase, size: int, known: int, predicted: int
) -> frozenset[int]:
    """Ids below ``predicted`` that the tokenizer, of that many tokens, or the model cannot read."""
    return frozenset(range(predicted)) - {i for i in tokenizer.get_vocab().values() if i < known}


def check_ids(ids: Sequence[Tensor], known: int) -> None:
    """
    Raises:
        ValueError: an id is none of the ``known`` that a model has.
    """
    every = torch.cat(list(ids)) if ids else torch.zeros(0)
    if len(wrong := every[(every < 0) | (every >= known)]):
        raise ValueError(
            f"a text holds the token {int(wrong[0])}, the model knows 0 to {known - 1}: take it"
            " out of the text, or use the tokenizer that belongs to the model"
        )


def match_ends(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Every id that ends a response of ``model``, which its tokenizer knows from now on.

    Where the checkpoint has no ``generation_config``, transformers makes one of ``config``, whose
    class may have an end token of its own: such an id counts if it is a special token.
    """
    settings = getattr(unwrapped(model), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    ids = [] if named is None else named if isinstance(named, list | tuple) else [named]
    if tokenizer is None:
        return frozenset(ids)
    if getattr(settings, "_from_model_config", None):
        special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
        ids = [i for i in ids if i in special]
    if settings is not None:
        note_model_ends(tokenizer, ids)
    return end_ids(tokenizer)


def require_end(
    tokenizer: PreTrainedTokenizerBase, stop_sequences: Sequence[str], option: str | None
) -> None:
    """
    Args:
        option: that has responses judged by whether they ended; None where none does.

    Raises:
        ValueError: there is one, and nothing can end a response.
    """
    if option and not stop_sequences and not end_ids(tokenizer):
        raise ValueError(
            f"{option} judges responses by whether they ended, and nothing ends one: the tokenizer"
            " has no eos_token, its chat template ends no turn with a token of its own, the"
            " model's generation_config names no eos_token_id, and env.stop_sequences is empty."
            f" Give the tokenizer an eos_token, set env.stop_sequences, or leave {option} out"
        )


def generation_settings(
    model: Any, tokenizer: PreTrainedTokenizerBase | None
) -> GenerationConfig | None:
    """``generation_config`` as an export holds it: whoever generates stops where training did.

    transformers refuses to write sampling flags beside ``do_sample=False``, which many checkpoints
    have: these sample.
    """
    found = getattr(unwrapped(model), "generation_config", None)
    if found is None:
        return None
    settings, ends = copy.deepcopy(found), sorted(match_ends(model, tokenizer))
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends or None
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = True
    return settings
