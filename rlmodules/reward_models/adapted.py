"""Reward models that are an adapter with a head, as TRL's RewardTrainer leaves them under LoRA."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rlmodules.models import ModelConfig, load_backbone, load_tokenizer
from rlmodules.models.embedded import EMBEDDED, TINY, embedded_model_dir
from rlmodules.models.saved_adapters import PEFT, SavedAdapter

SCORE = "score.weight"
"""Name of the one linear layer that is the head of transformers' classifiers over decoders."""


def load_classifier(saved: SavedAdapter) -> tuple[Any, PreTrainedTokenizerBase]:
    """The sequence classifier that ``saved`` makes of its base, and its tokenizer.

    It has as many labels as the adapter's head, whatever its base's config says.

    Raises:
        ValueError: the adapter has no head, or does not fit its base.
    """
    heads = heads_of(saved)
    labels = min((len(w) for w in heads.values() if w.dim() == 2), default=None)  # its last layer's
    options = {} if labels is None else {"num_labels": labels}
    try:
        model, missing = _classifier(saved, options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"reward.path={saved.name!r} is an adapter on {saved.base!r}, of which no sequence"
            f" classifier could be loaded: {error}"
        ) from error
    if without := sorted(missing - heads.keys()):
        raise ValueError(
            f"reward.path={saved.name!r} is an adapter without its head: neither it nor its base"
            f" {saved.base!r} has weights for {without}, and random ones would give random rewards."
            " Take a reward model's adapter (task_type SEQ_CLS), trained with modules_to_save"
            f"={sorted({name.rpartition('.')[0] for name in without})}"
        )
    adapted = saved.put_on(model).eval().requires_grad_(False)
    return adapted, load_tokenizer(ModelConfig(name=saved.name))


def heads_of(saved: SavedAdapter) -> dict[str, Tensor]:
    """What the adapter holds beside low-rank matrices, by its name in the classifier."""
    found = {name.removeprefix(PEFT): w for name, w in saved.weights().items()}
    return {name: w for name, w in found.items() if ".lora_" not in name and w.dim() <= 2}


def _classifier(saved: SavedAdapter, options: dict[str, Any]) -> tuple[Any, set[str]]:
    """The base as a classifier, and the names of its weights that are random."""
    if saved.base == TINY or saved.base.endswith(".gguf"):
        body: Any = load_backbone(ModelConfig(name=saved.base))
        for name, value in options.items():
            setattr(body.config, name, value)
        model = AutoModelForSequenceClassification.from_config(body.config)
        inside = getattr(model, model.base_model_prefix)
        inside.load_state_dict(body.state_dict())
        own = {f"{model.base_model_prefix}.{name}" for name in inside.state_dict()}
        return model, model.state_dict().keys() - own
    location = str(embedded_model_dir()) if saved.base == EMBEDDED else saved.base
    model, found = AutoModelForSequenceClassification.from_pretrained(
        location,
        revision=saved.base_revision,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # a head of other labels: the adapter brings its own
        **options,
    )
    return model, {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}


def adopt_head(model: Any, saved: SavedAdapter) -> None:
    """Go on with the score that the adapter of a reward model was trained with.

    Raises:
        ValueError: it has none, or another one than ``model``.
    """
    if str(saved.config.task_type).rpartition(".")[2] != "SEQ_CLS":
        return  # a language model's
    score, mine = heads_of(saved).get(SCORE), model.head.linear.weight
    if score is None:
        raise ValueError(
            f"model.name={saved.name!r} is a reward model's adapter without its score: it has no"
            f" {SCORE}, only {sorted(heads_of(saved))}. Train it with modules_to_save=['score'], or"
            " start from the language model"
        )
    if score.shape != mine.shape or model.config.pooling_strategy != "last":
        raise ValueError(
            f"model.name={saved.name!r} has a score of {len(score)} labels at the last token, this"
            f" model one of {len(mine)} with algo.pooling_strategy={model.config.pooling_strategy}:"
            " set algo.num_labels and algo.pooling_strategy=last alike"
        )
    with torch.no_grad():
        mine.copy_(score * model.config.temperature)
