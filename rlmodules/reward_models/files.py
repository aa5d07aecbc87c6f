"""Reward models on disk: one file of trained weights, or a folder that others load too."""

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from datamodules.atomic import ordinary_mode
from datamodules.ends import end_ids
from rlmodules.models import ModelConfig, load_backbone
from rlmodules.models.heads import unwrapped
from rlmodules.models.older_names import write_older_names
from rlmodules.models.quantized import config_without_quantization
from rlmodules.models.saving import Weights, dtype_of, plain_weights, save_plain

SETTINGS = "reward_model.json"
HEAD = "reward_head.safetensors"
HEADS = ("head.", "comparison.")
"""Names of what a reward model has beside its backbone begin so."""
SCORING = ("pooling_strategy", "temperature", "objective_weights")
"""Settings that turn equal weights into other scores."""


def save(model: Any, path: Path) -> None:
    """Trained weights and settings in one file."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    state = {n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"class": type(model).__name__, "config": json.dumps(asdict(model.config))}
    save_file({n: t for n, t in state.items() if n in trained}, path, metadata=metadata)
    ordinary_mode(path)


def load(model: Any, path: Path) -> None:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file ({error}). Pickles, such as torch.save writes, can run"
            " code and are not opened: write the model with save_model"
        ) from error
    kind = metadata.get("class")
    expected = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    found = {name: weight.shape for name, weight in state.items()}
    if kind != type(model).__name__ or expected != found:
        different = sorted(set(expected.items()) ^ set(found.items()))[:3]
        raise ValueError(
            f"{path} holds a {kind or 'model of another library'} that does not fit this"
            f" {type(model).__name__}; it differs in {different}"
        )
    saved = json.loads(metadata["config"])
    for name in SCORING:
        if name in saved and saved[name] != getattr(model.config, name):
            raise ValueError(
                f"{path} holds a model with {name}={saved[name]!r}, this one has"
                f" {name}={getattr(model.config, name)!r}, so its scores would be others: build it"
                " with the same setting"
            )
    model.load_state_dict(state, strict=False)


def export(model: Any, dirpath: Path, dtype: str | None = None) -> None:
    """Backbone, head, tokenizer and settings in a folder.

    A classifier of transformers reads the score at the last token that is not padding, so the
    folder's padding is a token that ends no text (``_padding``). Where the tokenizer has none, it
    says that none is defined: transformers then takes one text at a time, and refuses more.
    """
    tokenizer, weights = model.tokenizer, plain_weights(model.base_model, dtype_of(dtype))
    dirpath.mkdir(parents=True, exist_ok=True)
    whole = _classifier(model, weights)
    if whole is None:
        save_plain(model.base_model, dirpath, dtype=dtype_of(dtype))
    else:
        classifier, state = whole
        save_plain(model.base_model, dirpath, dtype=dtype_of(dtype), twin=classifier, weights=state)
        padding = classifier.config.get_text_config().pad_token_id
        if tokenizer is not None and padding is not None:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token_id = padding
    if tokenizer is not None:
        tokenizer.save_pretrained(dirpath)
    write_older_names(dirpath)
    heads = {n: t for n, t in model.state_dict().items() if n.startswith(HEADS)}
    save_file({n: t.cpu().contiguous() for n, t in heads.items()}, dirpath / HEAD)
    ordinary_mode(dirpath / HEAD)
    settings = {"class": type(model).__name__, "config": asdict(model.config)}
    (dirpath / SETTINGS).write_text(json.dumps(settings, indent=1))


def _classifier(model: Any, weights: Weights) -> tuple[Any, Weights] | None:
    """The model as transformers' own sequence classifier; None where that computes otherwise."""
    if model.config.pooling_strategy != "last" or not model.is_causal:
        return None
    config = config_without_quantization(unwrapped(model.base_model).config)
    config.num_labels = model.config.num_labels
    if names := getattr(model.config, "objectives", None):
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    if model.tokenizer is not None:
        texts = config.get_text_config()
        texts.pad_token_id = _padding(model.tokenizer, texts.vocab_size)
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:
        return None
    score = model.head.linear.weight.detach() / model.config.temperature
    state = weights.inside(classifier.base_model_prefix, **{"score.weight": score})
    return (classifier, state) if set(state) == set(classifier.state_dict()) else None


def _padding(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
    """The padding, or else the token that opens texts: an id that the last token never has."""
    last = end_ids(tokenizer) | {None, tokenizer.sep_token_id, tokenizer.unk_token_id}
    candidates = (tokenizer.pad_token_id, tokenizer.bos_token_id)
    return next((i for i in candidates if i not in last and i < vocab_size), None)


def settings_of(path: Path) -> dict[str, Any] | None:
    """Class and settings of the reward model in a folder; None if it is none of ours."""
    file = path / SETTINGS
    return json.loads(file.read_text()) if file.is_file() else None


def from_pretrained(cls: type, path: Path) -> Any:
    """
    Raises:
        ValueError: the folder holds no reward model of this class.
    """
    settings = settings_of(path)
    if settings is None or settings["class"] != cls.__name__:
        found = f"a {settings['class']}" if settings else f"no {SETTINGS}"
        raise ValueError(f"{path} has {found}, so it is no exported {cls.__name__}")
    body = load_backbone(ModelConfig(str(path)))  # with the attention it was trained with
    config = settings["config"] | {"use_lora": False}  # merged
    tokenizer = None
    if (path / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(path)
    model = cls(config, base_model=body, tokenizer=tokenizer)
    heads = load_file(path / HEAD)
    missing = {n for n in model.state_dict() if n.startswith(HEADS)} ^ set(heads)
    if missing:
        raise ValueError(f"{path / HEAD} does not fit a {cls.__name__}: {sorted(missing)}")
    model.load_state_dict(heads, strict=False)
    return model.eval()
