"""LoRA adapters on a model: put there, switched off, copied and frozen."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
)
from torch import Tensor, nn

from datamodules.checks import require_types
from rlmodules.checks import require
from rlmodules.models.targets import LoraTargets

WRAPPERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)
"""What PEFT puts around a layer of a model."""
FROZEN = "reference"
"""Name of a frozen copy of the adapters that a policy started with."""


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), by PEFT."""

    r: int = 0
    """Rank of the adapters; 0 trains all weights of the model instead, or the adapters that
    ``model.name`` has already."""
    alpha: int = 32
    """The adapters' output is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout on the adapters' input, in [0, 1), of reward models; policies take none."""
    target_modules: Any = "all-linear"
    """Names of the layers to adapt, or ``all-linear``, experts included."""

    def __post_init__(self) -> None:
        require_types(self, "model.lora")
        require(self, ("alpha",), lambda x: x >= 1, "at least 1", "model.lora")
        if self.r < 0:
            raise ValueError(f"model.lora.r={self.r} must be 0 (no adapters) or a positive rank")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.lora.dropout={self.dropout} must be in [0, 1)")


def add_lora(model: nn.Module, config: LoraConfig, task: str) -> nn.Module:
    """``model`` with adapters, which alone are trained.

    Args:
        task: PEFT's task type.

    Raises:
        ValueError: it has adapters already, or no layer has the name of a target.
    """
    if has_adapters(model):
        raise ValueError(
            f"model.lora.r={config.r}: the given model has adapters already: leave model.lora.r at"
            " 0 to train those, or give the model that merge_and_unload() makes of it"
        )
    chosen = LoraTargets(model, config.target_modules, config.dropout)
    adapted = _adapted(model, config, chosen, task)
    if lost := _lost_when_loaded(adapted):
        chosen.leave_out(lost)
        adapted = _adapted(adapted.unload(), config, chosen, task)
        assert not _lost_when_loaded(adapted), lost
    chosen.say_what_is_left_out()
    return adapted


def _adapted(model: Any, config: LoraConfig, chosen: LoraTargets, task: str) -> Any:
    options = chosen.options | {"r": config.r, "lora_alpha": config.alpha}
    adapters = PeftLoraConfig(task_type=task, lora_dropout=config.dropout, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Already found a `peft_config`"
        )  # of the last try
        try:
            return get_peft_model(model, adapters)  # in float32, whatever the base's type
        except ValueError as error:
            raise ValueError(
                f"model.lora.target_modules={config.target_modules!r} fits no layer: {error}"
            ) from error


def _lost_when_loaded(adapted: Any) -> list[str]:
    """Names of the layers whose adapters PEFT does not find again in a folder that it wrote.

    It renames them as transformers renames the weights of old checkpoints, by patterns that fit
    some names of today too (Laguna's shared experts).
    """
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    config = adapted.peft_config[adapted.active_adapter]
    loaded = convert_peft_adapter_state_dict_for_transformers(adapted, config, dict(saved))
    lost = {key.partition(".lora_")[0] for key in saved.keys() - loaded.keys()}
    return sorted({n.removeprefix("base_model.model.").replace(".base_layer", "") for n in lost})


def has_adapters(model: nn.Module) -> bool:
    """Whether some layer of ``model`` has an adapter, whoever put it there."""
    return any(isinstance(part, WRAPPERS) for part in model.modules())


def require_trainable(model: nn.Module, *, has_head: bool = False) -> None:
    """Refuse a given model that would not be trained as it looks.

    Args:
        has_head: whether a head of ours is trained too, so that the model itself may be frozen.

    Raises:
        ValueError: no weight of it is trained, or its adapters are not what is trained.
    """
    name = type(model).__name__
    if has_adapters(model) and not isinstance(model, PeftModel):
        raise ValueError(
            f"the given {name} has adapters, but no PeftModel holds them: load it as"
            " PeftModel.from_pretrained(base, DIR, is_trainable=True), or give the folder as"
            " model.name"
        )
    if isinstance(model, PeftModel):
        kinds = {model.peft_config[name].peft_type for name in model.active_adapters}
        if kinds != {PeftType.LORA} or len(model.active_adapters) != 1:
            raise ValueError(
                f"the given {name} has the active adapters {model.active_adapters} of type"
                f" {sorted(map(str, kinds))}: one LoRA adapter can be trained; choose it with"
                " set_adapter, or give the model that merge_and_unload() makes of it"
            )
        if any(getattr(part, "merged", False) is True for part in model.modules()):
            raise ValueError(
                f"the adapters of the given {name} are merged into its weights for the time being:"
                " call unmerge_adapter()"
            )
    may_be_frozen = has_head and not isinstance(model, PeftModel)
    if not may_be_frozen and not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"no weight of the given {name} is trained: load adapters with PeftModel"
            ".from_pretrained(base, DIR, is_trainable=True), or call requires_grad_(True)"
        )


# ------------------------------------------------------------- as it was before


@contextlib.contextmanager
def adapters_off(model: Any) -> Iterator[nn.Module]:
    """``model`` with its adapters switched off, for as long as the context lasts."""
    with _gradients_kept(model), model.disable_adapter():
        yield model


@contextlib.contextmanager
def adapter_on(model: Any, name: str) -> Iterator[nn.Module]:
    """``model`` with another one of its adapters, for as long as the context lasts."""
    active = model.active_adapter
    with _gradients_kept(model):
        model.set_adapter(name)
        try:
            yield model
        finally:
            model.set_adapter(active)


@contextlib.contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """What is frozen stays so: PEFT makes all of an adapter trainable when it switches it on."""
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def adapters_change_nothing(model: Any) -> bool:
    """Whether ``model`` computes now what it computes with its adapters off: they are fresh."""
    (name,) = model.active_adapters
    for part in model.modules():
        if isinstance(part, ModulesToSaveWrapper):
            trained = part.modules_to_save
            if name in trained and not _equal(trained[name], part.original_module):
                return False
        elif isinstance(part, AuxiliaryTrainingWrapper) or name in getattr(
            part, "lora_magnitude_vector", {}
        ):
            return False
        for kind in ("lora_B", "lora_embedding_B"):
            outputs = getattr(part, kind, {})
            if name in outputs and any(bool(w.any()) for w in weights_of(outputs[name])):
                return False
    return True


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold the same numbers, in the same types."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def weights_of(part: nn.Module | Tensor) -> list[Tensor]:
    """The parameters of an adapter's part, which may be one itself."""
    return list(part.parameters()) if isinstance(part, nn.Module) else [part]


def trains_adapters_alone(model: Any) -> bool:
    """Whether all that is trained can be switched off, being the active adapter's."""
    if not isinstance(model, PeftModel) or model.active_peft_config.bias != "none":
        return False
    mine = {
        id(weight)
        for held in _adapter_parts(model)
        for name in model.active_adapters
        if name in held
        for weight in weights_of(held[name])
    }
    return all(id(p) in mine for p in model.parameters() if p.requires_grad)


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters of all adapters, by name."""
    held = {id(w) for parts in _adapter_parts(model) for part in parts.values()
            for w in weights_of(part)}  # fmt: skip
    return {name: p for name, p in model.named_parameters() if id(p) in held}


def _adapter_parts(model: nn.Module) -> Iterator[Any]:
    """Dicts of parts by adapter's name."""
    for module in model.modules():
        if isinstance(module, WRAPPERS):
            for kind in module.adapter_layer_names:
                held = getattr(module, kind, None)
                if isinstance(held, (nn.ModuleDict, nn.ParameterDict)):
                    yield held


def freeze_copy(model: Any) -> str:
    """Put a frozen copy of the active adapter beside it, switched off; returns its name."""
    (active,) = model.active_adapters
    config = copy.deepcopy(model.peft_config[active])
    config.init_lora_weights = False  # some initialisations would change the base
    with _gradients_kept(model), torch.random.fork_rng():
        model.add_adapter(FROZEN, config)
    for held in _adapter_parts(model):
        if active in held:
            held[FROZEN] = copy.deepcopy(held[active])  # of its type, on its device
            for weight in weights_of(held[FROZEN]):
                weight.requires_grad_(False)
    return FROZEN


def weights_in_use(model: Any) -> dict[str, Tensor]:
    """The state of ``model`` without adapters that are off, and the scale of one that is on."""
    state = model.state_dict()
    if not isinstance(model, PeftModel):
        return state
    is_off = any(isinstance(m, BaseTunerLayer) and m.disable_adapters for m in model.modules())
    active = [] if is_off else model.active_adapters
    names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    for held in _adapter_parts(model):
        for weight in (w for name in held if name not in active for w in weights_of(held[name])):
            state.pop(names[id(weight)], None)
    for path, module in model.named_modules():
        scales = getattr(module, "scaling", {}) if isinstance(module, BaseTunerLayer) else {}
        for name in set(active) & scales.keys():
            state[f"{path}.scaling"] = torch.tensor(module.scaling[name], dtype=torch.float64)
    return state
