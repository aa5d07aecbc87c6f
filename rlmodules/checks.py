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
