"""Which optimizer trains, and what it is told; without torch."""

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from datamodules.checks import require_types
from rlmodules.checks import require, require_known

OPTIMIZERS = ("adamw", "adamw8bit", "adamw_offload", "muon")
OF_MUON = ("momentum", "nesterov", "ns_steps", "adjust_lr_fn")
"""Options that no other optimizer reads."""
NEEDED = {
    # optimizer -> the package that has it, since which version, and how to get it
    "adamw8bit": ("bitsandbytes", (0, 50), 'pip install "rlmodules[adamw8bit]"'),
    "muon": ("torch", (2, 9), "update torch"),
}
RUNS_ON = {"adamw8bit": ("cpu", "cuda", "gpu")}
"""Kinds of devices that an optimizer is known to run on, where these are not all."""


@dataclass
class OptimizerConfig:
    """The optimizer; its learning rate and weight decay are options of the algorithm."""

    name: str = "adamw"
    """``adamw``; ``adamw8bit``, whose state takes a quarter; ``adamw_offload``, whose state is in
    the host's memory; ``muon``, for the matrices of the layers, with AdamW for all else."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Of AdamW: how slowly its means of gradients and of their squares move, each in [0, 1)."""
    eps: float = 1e-8
    """Of AdamW: added to what its step is divided by."""
    momentum: float = 0.95
    """Of Muon: how slowly its mean of gradients moves, in [0, 1)."""
    nesterov: bool = True
    """Of Muon: whether its step looks ahead by a momentum."""
    ns_steps: int = 5
    """Of Muon: Newton-Schulz iterations that make its step orthogonal, 1 to 99."""
    adjust_lr_fn: str = "match_rms_adamw"
    """Of Muon: ``match_rms_adamw`` has its steps be as large as AdamW's, so that ``learning_rate``
    means the same; ``original`` is Keller Jordan's scale, of rates about 50 times as high."""

    def __post_init__(self) -> None:
        group = "algo.optimizer"
        require_types(self, group)
        adjustments = ("match_rms_adamw", "original")
        require_known(self, {"name": OPTIMIZERS, "adjust_lr_fn": adjustments}, group)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"{group}.betas={self.betas!r} must be two numbers in [0, 1)")
        require(self, ("eps",), lambda x: x > 0, "positive", group)
        require(self, ("momentum",), lambda x: 0 <= x < 1, "in [0, 1)", group)
        require(self, ("ns_steps",), lambda x: 1 <= x < 100, "between 1 and 99", group)
        if self.name != "muon":
            untouched = [name for name in OF_MUON if getattr(self, name) != DEFAULTS[name]]
            what = f"left out: {self.name} does not read it (optimizer=muon does)"
            require(self, untouched, lambda x: False, what, group)

    @classmethod
    def of(cls, value: "OptimizerConfig | dict[str, Any]") -> "OptimizerConfig":
        """``value``, from a dict where YAML or a checkpoint holds it as one.

        Raises:
            ValueError: it is neither.
        """
        if not isinstance(value, cls | dict):
            raise ValueError(
                f"algo.optimizer={value!r} must be an OptimizerConfig: OptimizerConfig(name='muon')"
            )
        return cls(**value) if isinstance(value, dict) else value


DEFAULTS = {name: getattr(OptimizerConfig, name) for name in OF_MUON}


def require_optimizer(name: str, device: str | None = None) -> None:
    """
    Args:
        device: what trains, ``cpu`` or ``cuda:1``; None says nothing of it.

    Raises:
        ValueError: the optimizer ``name`` is not installed, or does not run on ``device``.
    """
    option = f"algo.optimizer.name={name}"
    if name in NEEDED:
        package, least, how = NEEDED[name]
        try:
            found = version(package)
        except PackageNotFoundError:
            raise ValueError(
                f"{option} needs {package}, which is not installed: {how}, or optimizer=adamw"
            ) from None
        if tuple(map(int, found.split(".")[:2])) < least:
            needs = ".".join(map(str, least))
            raise ValueError(f"{option} needs {package} {needs} or later, not {found}: {how}")
    kind = (device or "cpu").partition(":")[0]
    if kind not in RUNS_ON.get(name, (kind,)):
        raise ValueError(f"{option} does not run on {device}: use optimizer=adamw")
