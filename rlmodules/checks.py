"""Checks of config fields and of what surrounds a run; errors name field, value and remedy."""

import importlib.util
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DATAMODULES = Path(__file__).resolve().parents[1] / "datamodules"
"""The package that was installed with this one."""


def check_datamodules() -> None:
    """Refuse another ``datamodules`` than the one that was installed with ``rlmodules``.

    Raises:
        ImportError: a file or folder of that name comes first on the import path.
    """
    spec = importlib.util.find_spec("datamodules")
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    found = [Path(place).resolve() for place in places if place]
    if DATAMODULES not in found:
        first = found[0] if found else "none"
        raise ImportError(
            f"rlmodules needs the datamodules installed with it, {DATAMODULES}, but Python finds"
            f" {first}: rename that one, or take its folder off the import path"
        )


def warn_of_hidden_datamodules(folder: Path) -> None:
    """Say that a ``datamodules`` of the user's own in ``folder`` cannot be imported in this run."""
    own = (folder / "datamodules", folder / "datamodules.py")
    if hidden := [path for path in own if path.exists() and path.resolve() != DATAMODULES]:
        warnings.warn(
            f"{hidden[0]} is hidden by the package {DATAMODULES}: rename it, if the run needs it",
            stacklevel=2,
        )


def require(
    config: Any, names: Iterable[str], holds: Callable[[Any], bool], what: str, group: str = "algo"
) -> None:
    """Check fields of ``config`` alike.

    Raises:
        ValueError: ``holds(value)`` is False for one of them; ``what`` says how it must be.
    """
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            raise ValueError(f"{group}.{name}={value!r} must be {what}")


def device_options(device: str | None) -> dict[str, Any]:
    """Lightning's ``accelerator`` and ``devices`` for cpu, cuda, cuda:INDEX, mps or None.

    Raises:
        ValueError: another string.
    """
    if device is None:
        return {"accelerator": "auto", "devices": "auto"}
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "gpu", "mps") or (index and not index.isdigit()):
        raise ValueError(f"algo.device={device!r}: use cpu, cuda, cuda:INDEX, mps or null for auto")
    accelerator = "gpu" if kind == "cuda" else kind
    return {"accelerator": accelerator, "devices": [int(index)] if index else 1}
