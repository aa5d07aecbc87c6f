"""Which weights of a model LoRA adapts: those of linear layers that text reaches, and of experts.

transformers keeps the experts of a layer as one parameter of three dimensions. ``all-linear`` of
PEFT knows those of some architectures; of others, nine tenths of the model would stay as they are.
"""

import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from peft.tuners.lora import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlmodules.models.heads import unwrapped
from rlmodules.models.media import unreached_pattern

ALL = "all-linear"
MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
PEFT_REFUSES = ("out_proj", "conv1d")
"""What PEFT 0.21 adapts in no model of ``MAMBA``."""
LINEAR = (nn.Linear, Conv1D)
NO_MATRIX = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose weights multiply no hidden state."""
NO_MATRICES = ("bias", "A_log", "embedding", "embeddings")
"""Ends of names of parameters that do not either."""


class LoraTargets:
    """What of ``model``, which has no adapters yet, is to be adapted.

    Args:
        targets: ``all-linear``, names of layers, or a regex.
        dropout: on the adapters' input, which PEFT cannot apply to a fused parameter.

    Raises:
        ValueError: a layer that is named is none that an adapter fits, or experts take no dropout.
    """

    def __init__(self, model: nn.Module, targets: Any, dropout: float) -> None:
        self.model, self.targets = unwrapped(model), targets
        self.towers = unreached_pattern(model)
        self.unfit = _unfit(self.model)
        matrices = dict(self._matrices())
        self.experts = [name for name, fused in matrices.items() if fused and targets == ALL]
        self.wanted = {name: self.model.get_parameter(name) for name in matrices}
        if self.experts and dropout:
            raise ValueError(
                f"model.lora.dropout={dropout}: {', '.join(_patterns(self.experts))} hold the"
                " experts of a whole layer, which take no dropout: set it to 0, or name the layers"
                " to adapt in model.lora.target_modules"
            )
        self._refuse_named(
            "no adapter fits, for its model reads the weight or more than its product"
        )

    def leave_out(self, lost: Sequence[str]) -> None:
        """Adapt none of ``lost``, whose adapters would not be found again in a folder.

        Raises:
            ValueError: one of them is named.
        """
        self.unfit += lost
        self.experts = [name for name in self.experts if name.rpartition(".")[0] not in lost]
        self._refuse_named("would not be found again in an exported adapter, as PEFT renames it")

    def _refuse_named(self, reason: str) -> None:
        named = [name for name in self.unfit if self._is_named(name)]
        if named and self.targets != ALL:
            raise ValueError(
                f"model.lora.target_modules={self.targets!r} names {', '.join(_patterns(named))},"
                f" which {reason}: take it out"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Of PEFT's ``LoraConfig``."""
        excluded = [re.escape(name) for name in self.unfit]
        excluded += [self.towers] if self.towers else []
        named = self.targets if isinstance(self.targets, str) else list(self.targets)
        return {
            "target_modules": named,
            "target_parameters": self.experts or None,
            "exclude_modules": "|".join(excluded) or None,
        }

    def say_what_is_left_out(self) -> None:
        """Warn of what was wanted and has no adapter; call it once they are there."""
        adapted = adapted_weights(self.model)
        if left := [name for name, weight in self.wanted.items() if id(weight) not in adapted]:
            warnings.warn(
                f"model.lora.target_modules={self.targets} leaves out {', '.join(_patterns(left))}",
                stacklevel=4,
            )

    @property
    def fitting(self) -> set[int]:
        """``id`` of each parameter that gets an adapter."""
        owners = {name: name.rpartition(".")[0] for name in self.wanted}
        linear = {
            name
            for name, owner in owners.items()
            if owner not in self.unfit and isinstance(self.model.get_submodule(owner), LINEAR)
        }
        return {id(self.wanted[name]) for name in linear | set(self.experts)}

    def _matrices(self) -> Iterator[tuple[str, bool]]:
        """Names of the parameters to adapt, and whether they are the experts of a whole layer."""
        head = self.model.get_output_embeddings()
        for name, module in self.model.named_modules():
            seen = not self.towers or re.fullmatch(self.towers, name) is None
            if module is head or not seen or isinstance(module, NO_MATRIX):
                continue
            if not isinstance(module, LINEAR):
                bare = module.named_parameters(name, recurse=False) if self.targets == ALL else ()
                is_expert = "Experts" in type(module).__name__
                yield from ((n, is_expert and w.dim() == 3) for n, w in bare if _is_matrix(n, w))
            elif self._is_named(name):
                yield f"{name}.weight", False

    def _is_named(self, name: str) -> bool:
        if self.targets == ALL:
            return True
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in self.targets)


def adapted_weights(model: nn.Module) -> set[int]:
    """``id`` of each parameter of ``model`` that has an adapter."""
    found = set()
    for part in model.modules():
        if isinstance(part, ParamWrapper):
            found.add(id(part.get_param()))
        elif isinstance(part, BaseTunerLayer):
            found.add(id(part.get_base_layer().weight))
    return found


def _unfit(model: Any) -> list[str]:
    """Names of linear layers that no adapter fits: they compute something else; they share their
    weight, into which the adapters of all would be merged (Zamba); or the layer around them reads
    it, past any adapter, in all or in one of its kernels (Mamba)."""
    refused = PEFT_REFUSES if getattr(model.config, "model_type", None) in MAMBA else ()
    layers = [part for part in model.modules() if isinstance(part, LINEAR)]
    owners = Counter(id(layer.weight) for layer in layers)
    names = []
    for prefix, parent in model.named_modules():
        kind: Any = type(parent)
        for own, layer in parent.named_children():
            if isinstance(layer, LINEAR) and (
                own in refused
                or owners[id(layer.weight)] > 1
                or _only_looks_linear(layer)
                or _reads_weight(kind, own)
            ):
                names.append(f"{prefix}.{own}" if prefix else own)
    return names


@cache
def _reads_weight(kind: type, layer: str) -> bool:
    """Whether the code of a class in transformers mentions the weight of one of its layers."""
    mention = re.compile(rf"\bself\.{re.escape(layer)}\.weight\b(?!\.(dtype|device|shape)\b)")
    own = [c for c in kind.__mro__ if c.__module__.startswith("transformers.models.")]
    return any(mention.search(inspect.getsource(c)) for c in own)


def _only_looks_linear(module: nn.Module) -> bool:
    """Whether it is of ``nn.Linear``'s kind and computes something else, as Llama 4's router."""
    if not isinstance(module, nn.Linear) or type(module).forward is nn.Linear.forward:
        return False
    if not type(module).__module__.startswith("transformers.models."):
        return False  # of a quantised model, for example: PEFT knows those
    weight = module.weight
    x = torch.ones(1, module.in_features, dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            found: Any = module(x)
            expected = nn.functional.linear(x, weight, module.bias)
    except (RuntimeError, TypeError):
        return True
    return not (isinstance(found, Tensor) and torch.allclose(found, expected, rtol=1e-2, atol=1e-2))


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.dim() in (2, 3) and min(weight.shape) > 1 and not name.endswith(NO_MATRICES)


def _patterns(names: Sequence[str]) -> list[str]:
    """Names of parameters, those of all layers as one."""
    return sorted({re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names})
