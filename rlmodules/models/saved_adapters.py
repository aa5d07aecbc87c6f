"""Adapters on disk or on a hub: recognised, and put on the model that they belong on."""

import copy
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig as PeftLoraConfig
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from rlmodules.models.adapters import LoraConfig, adapter_weights
from rlmodules.models.embedded import EMBEDDED, TINY, embedded_cache
from rlmodules.models.targets import LoraTargets, adapted_weights

CONFIG = "adapter_config.json"
PEFT = "base_model.model."
"""How names of weights begin in PEFT's files."""
QUIET = {f"_raise_exceptions_for_{what}": False for what in
         ("gated_repo", "missing_entries", "connection_errors")}  # fmt: skip


@dataclass(frozen=True)
class SavedAdapter:
    """A LoRA adapter that ``model.name`` or ``reward.path`` names.

    Attributes:
        name, revision: folder, or id on a hub.
        config: PEFT's.
        base, base_revision: the model that it was trained on.
    """

    name: str
    revision: str | None
    config: PeftLoraConfig
    base: str
    base_revision: str | None

    def weights(self) -> dict[str, Tensor]:
        """By name, in PEFT's format.

        Raises:
            ValueError: there are none.
        """
        try:
            return load_peft_weights(self.name, device="cpu", revision=self.revision)
        except Exception as error:
            raise ValueError(
                f"{self.name!r} has an {CONFIG}, but its weights could not be loaded: {error}"
            ) from error

    def file(self, name: str) -> str | None:
        """The path of one of its other files; None where there is none."""
        return cached_file(self.name, name, revision=self.revision, **QUIET)

    def put_on(self, model: Any) -> PeftModel:
        """``model``, which is ``base`` or the transformer inside it, with the adapter, trainable.

        Raises:
            ValueError: the adapter is of another model.
        """
        weights, config = self.weights(), copy.deepcopy(self.config)
        config.inference_mode = False
        config.base_model_name_or_path, config.revision = self.base, self.base_revision
        if inside := _prefix_of(model, weights):
            config, weights = _without_head(config, weights, inside)
        model.name_or_path = self.base  # or PEFT warns
        try:
            with torch.random.fork_rng():  # what is drawn here is overwritten
                adapted: Any = get_peft_model(model, config)
            mine = adapter_weights(adapted)
            for weight in mine.values():
                weight.data.fill_(torch.nan)  # until it is loaded
            result: Any = set_peft_model_state_dict(adapted, weights)
        except (ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self._misfit()}: {error}") from error
        lost = result.unexpected_keys
        left = [name for name, weight in mine.items() if not weight.isfinite().all()]
        if lost or left:
            raise ValueError(
                f"{self._misfit()}: the base has no place for {sorted(lost)[:3]}, and the adapter"
                f" has no number for {left[:3]}"
            )
        return adapted

    def _misfit(self) -> str:
        return f"the adapter {self.name!r} does not fit its base {self.base!r}"

    def go_on(self, model: Any, asked: LoraConfig) -> PeftModel:
        """``model`` with the adapter, if that is what ``asked`` asks for too.

        Raises:
            ValueError: it asks for others, or the adapter is of another model.
        """
        is_default = asked == replace(LoraConfig(), dropout=asked.dropout)
        meant = set() if is_default else LoraTargets(model, asked.target_modules, 0.0).fitting
        adapted = self.put_on(model)
        if not is_default:
            same = adapted_weights(adapted) == meant
            self._require(asked, asked.target_modules if same else "others")
        return adapted

    def _require(self, asked: LoraConfig, targets: Any) -> None:
        config = self.config
        found = {"r": config.r, "alpha": config.lora_alpha, "target_modules": targets}
        for name, value in found.items():
            if getattr(asked, name) != value:
                raise ValueError(
                    f"model.lora.{name}={getattr(asked, name)!r}, but the adapter"
                    f" {self.name!r} has {_said(config, name)!r}: leave model.lora out to go on"
                    " training it, or set model.adapter=merge to merge it and add a new one"
                )


def _prefix_of(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """Where ``model`` is inside of the one that the adapter was made for; '' where it is that one.

    As ``model.``, ``transformer.``, ...
    """
    prefix = getattr(model, "base_model_prefix", "")
    is_inside = prefix and not hasattr(model, prefix)
    found = any(name.startswith(f"{PEFT}{prefix}.") for name in weights)
    return f"{prefix}." if is_inside and found else ""


def _without_head(
    config: PeftLoraConfig, weights: dict[str, Tensor], prefix: str
) -> tuple[PeftLoraConfig, dict[str, Tensor]]:
    """The adapter of the transformer that names ``prefix``... are in, without what is beside it."""
    inside = {
        name.removeprefix(PEFT + prefix): weight
        for name, weight in weights.items()
        if name.startswith(PEFT + prefix)
    }
    changes: dict[str, Any] = {}
    for kind in ("rank_pattern", "alpha_pattern"):
        found = getattr(config, kind) or {}
        if any(key.startswith("^") for key in found):
            raise ValueError(
                f"its {kind} is about names that begin in the model with a head: {found}"
            )
        changes[kind] = {key.removeprefix(prefix): value for key, value in found.items()}
    modules = {name.rpartition(".")[0] for name in inside if ".lora_" not in name}
    changes |= {
        "task_type": "FEATURE_EXTRACTION",
        "target_modules": {name.split(".lora_")[0] for name in inside if ".lora_" in name},
        "target_parameters": [t.removeprefix(prefix) for t in config.target_parameters or ()]
        or None,
        "modules_to_save": sorted(modules) or None,
        "layers_to_transform": None,
        "exclude_modules": None,
    }
    return (
        replace(config, **changes),
        {PEFT + name: weight for name, weight in inside.items()},
    )


def _said(config: PeftLoraConfig, name: str) -> Any:
    value = getattr(config, {"alpha": "lora_alpha"}.get(name, name))
    if not isinstance(value, (set, list)):
        return value
    return sorted({re.sub(r".*\.\d+\.", "", target) for target in value})


def saved_adapter(name: str, revision: str | None = None) -> SavedAdapter | None:
    """The adapter that ``name`` is; None where it is none.

    Raises:
        ValueError: it is no LoRA adapter, has no base, or its base is an adapter itself.
    """
    found = _config_file(name, revision)
    if found is None:
        return None
    folder = Path(found).parent
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name!r}: its {CONFIG} cannot be read: {error}") from error
    if not isinstance(config, PeftLoraConfig):
        raise ValueError(
            f"{name!r} is an adapter of type {config.peft_type.value}, and LoRA is the one that is"
            " trained here: merge it, by PeftModel.from_pretrained(base, DIR).merge_and_unload(),"
            " save the result, and name that"
        )
    if (folder / "config.json").is_file() and [*folder.glob("model*.safetensors")]:
        raise ValueError(
            f"{name!r} holds an adapter and a whole model too: move {CONFIG} away to take the"
            " model, or model*.safetensors and config.json to take the adapter"
        )
    base = _base_of(name, folder, config.base_model_name_or_path)
    if _config_file(base, config.revision) is not None:
        raise ValueError(
            f"the adapter {name!r} is on {base!r}, which is an adapter itself: merge that one,"
            f" save the model, and name it as base_model_name_or_path in {folder / CONFIG}"
        )
    return SavedAdapter(name, revision, config, base, config.revision)


def _config_file(name: str, revision: str | None) -> str | None:
    if name in (EMBEDDED, TINY) or name.endswith(".gguf"):
        return None
    try:
        return find_adapter_config_file(name, revision=revision)
    except (OSError, HFValidationError):  # a hub that cannot be reached, no repository's name
        return None


def _base_of(name: str, folder: Path, base: str | None) -> str:
    if not base:
        raise ValueError(f"the adapter {name!r} names no base: {folder / CONFIG} has no"
                         " base_model_name_or_path")  # fmt: skip
    if base in (EMBEDDED, TINY):
        return base
    if Path(base).name == embedded_cache().name:  # as earlier versions wrote it
        return EMBEDDED
    for path in (folder / base, Path(base)):
        if path.exists():
            return str(path.absolute())
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) and not base.startswith("."):
        return base
    raise ValueError(
        f"the adapter {name!r} is on the model {base!r}, which is not there: put it back, or write"
        f" where it is as base_model_name_or_path into {folder / CONFIG}"
    )


def public_name(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """How others name a model that was loaded as ``name``: never by a folder of a cache."""
    path = Path(name)
    if name in (EMBEDDED, TINY) or not path.exists():
        return name, revision
    if path.resolve() == embedded_cache().resolve():
        return EMBEDDED, None
    inside = re.search(r"/models--([^/]+)/snapshots/([^/]+)$", str(path.resolve()))
    if inside:
        return inside[1].replace("--", "/"), inside[2]
    return str(path.absolute()), None
