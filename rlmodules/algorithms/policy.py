"""The policy of an algorithm: what its config names, or what it is given."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlmodules.models import (
    LoraConfig,
    ModelConfig,
    PolicyModel,
    disable_dropout,
    load_model,
    load_tokenizer,
    prepare_given,
)
from rlmodules.models.media import freeze_unreached
from rlmodules.models.quantized import held_as
from rlmodules.models.reference import SameReference
from rlmodules.models.saved_adapters import saved_adapter
from rlmodules.models.vocabulary import match_tokenizer


def load_policy(
    kind: type[PolicyModel],
    config: Any,
    model_config: ModelConfig | dict[str, Any] | None,
    model: nn.Module | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[PolicyModel, PreTrainedTokenizerBase, ModelConfig]:
    """A policy, its tokenizer, and how its model was loaded.

    Args:
        config: of the algorithm; names the model and the seed of new adapters and heads.
        model_config: how to load the model; default: ``config.model_name`` with LoRA off.
        model, tokenizer: used instead of loading what ``model_config`` names.

    Raises:
        ValueError: ``config.model_name`` and ``model_config.name`` differ, ``model`` would not be
            trained as it looks, or ``model.lora.dropout`` is asked for in vain.
    """
    model_config = ModelConfig.of(model_config, config.model_name, given=model is not None)
    if model_config.lora.dropout:
        raise ValueError(
            f"model.lora.dropout={model_config.lora.dropout}: a policy is trained as it is"
            " evaluated, for dropout would be noise in every ratio and KL: set it to 0 (reward"
            " models may have it)"
        )
    with torch.random.fork_rng():  # new adapters and heads are a function of the seed
        torch.manual_seed(config.seed)
        model = load_model(model_config) if model is None else prepare_given(model, model_config)
        if rates := {rate for *_, rate in disable_dropout(model)}:
            warnings.warn(
                f"the model came with dropout ({sorted(rates)}), which is off now: it would be"
                " noise in every ratio and KL",
                stacklevel=3,
            )
        policy = kind(model)
    model_config = replace(model_config, quantization=held_as(policy.base_model))
    freeze_unreached(policy.base_model)
    if getattr(policy.base_model.config.get_text_config(), "output_router_logits", False):
        warnings.warn(
            "config.json asks for the routers' auxiliary loss (output_router_logits): no loss here"
            " has it",
            stacklevel=2,
        )
    tokenizer = tokenizer or load_tokenizer(model_config)
    match_tokenizer(policy.base_model, tokenizer)
    return policy, tokenizer, model_config


def config_of_export(loaded: ModelConfig, dirpath: Path) -> ModelConfig:
    """How to load what a run that ``loaded`` its model like that exported into ``dirpath``."""
    held = loaded.quantization if saved_adapter(str(dirpath)) else "none"  # else it was merged
    return replace(loaded, name=str(dirpath), lora=LoraConfig(), adapter="continue", revision=None,
                   quantization=held)  # fmt: skip


def policy_from_export(module: Any, dirpath: Path, **given: Any) -> Any:
    """The policy in ``dirpath`` as another module of its class, held against the same reference.

    Args:
        given: what the class takes besides settings.
    """
    loaded = ModelConfig.of(module.hparams["model_config"], "", given=True)
    name, read = str(dirpath), config_of_export(loaded, dirpath)
    written = type(module)(replace(module.config, model_name=name), read, **given)
    if getattr(module, "reference", None) is not None:
        written.reference = SameReference(module.reference, module.policy)
    return written
