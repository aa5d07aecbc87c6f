"""Checks of config fields and of what surrounds a run; errors name field, value and remedy."""

import difflib
import importlib.util
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
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


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that ``word`` was most probably meant to be; None if there is none like it."""
    close = difflib.get_close_matches(str(word).lower(), [str(name) for name in known], 1, 0.6)
    return close[0] if close else None


def meant(word: Any, known: Iterable[str]) -> str:
    """``: did you mean NAME?``, the end of a sentence; empty where no known name is like it."""
    close = nearest(str(word), known)
    return f": did you mean {close}?" if close else ""


def require_known(config: Any, names: Mapping[str, Collection[str]], group: str = "algo") -> None:
    """Check fields of ``config`` whose values are names.

    Args:
        names: field -> the values that it may have.

    Raises:
        ValueError: one has another value; the nearest that it may have is suggested.
    """
    for name, known in names.items():
        value = getattr(config, name)
        if value not in known:
            raise ValueError(
                f"{group}.{name}={value!r} must be one of {tuple(known)}{meant(value, known)}"
            )


def defaults_of(config: Any) -> dict[str, Any]:
    """The defaults of a dataclass's fields, of those that have one; nested ones as dicts."""
    found = {
        f.name: f.default_factory() if callable(f.default_factory) else f.default
        for f in fields(config)
    }
    found = {name: value for name, value in found.items() if value is not MISSING}
    return {name: asdict(v) if is_dataclass(v) else v for name, v in found.items()}


def require_device(device: str | None) -> None:
    """
    Raises:
        ValueError: this machine has no such device, or it is none at all.
    """
    import torch  # heavy: only where something is to run

    kind = device_options(device)["accelerator"]
    known, what = torch.cuda.device_count(), "GPU that torch can use by CUDA or ROCm"
    if kind == "mps":
        known, what = int(torch.backends.mps.is_available()), "GPU of Apple's"
    index = int((device or "").partition(":")[2] or 0)
    if kind in ("gpu", "mps") and index >= known:
        raise ValueError(
            f"algo.device={device!r}: this machine has {known or 'no'} {what}: use cpu, or null"
        )


def naming(make: Callable[..., Any], group: str, options: Mapping[str, Any]) -> Any:
    """What ``make`` makes of ``options``.

    Raises:
        ValueError: it raised something, and does not without the option that is named.
    """
    try:
        return make(**options)
    except Exception as error:
        for name, value in options.items():
            try:
                make(**{k: v for k, v in options.items() if k != name})
            except Exception:
                continue
            cause = error.__cause__ or error
            raise ValueError(f"{group}.{name}={value!r}: {cause}") from error
        raise


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
