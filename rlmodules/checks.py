"""Checks of config fields, with errors that name field, value and remedy."""

from collections.abc import Callable, Iterable
from typing import Any


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
