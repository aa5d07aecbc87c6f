"""Checks of values that options give; errors name option, value and range."""

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

SEEDS = 2**32
"""Seeds are below this: all that draws random numbers takes them."""


def is_whole(value: Any) -> bool:
    """Whether it is a whole number (True and False are none)."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether it is a number that float holds: not NaN, not infinite, nothing that overflows."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def require_whole(group: str, least: int, **values: Any) -> None:
    """
    Raises:
        ValueError: one of ``values`` is no whole number of ``least`` or more.
    """
    for name, value in values.items():
        if not is_whole(value) or value < least:
            raise ValueError(f"{group}.{name}={value!r} must be a whole number, {least} or more")


def require_finite(group: str, **values: Any) -> None:
    """
    Raises:
        ValueError: one of ``values`` is no finite number.
    """
    for name, value in values.items():
        if not is_finite(value):
            raise ValueError(f"{group}.{name}={value!r} must be a finite number")


def require_seed(option: str, value: Any) -> None:
    """
    Raises:
        ValueError: it is no seed.
    """
    if not is_whole(value) or not 0 <= value < SEEDS:
        raise ValueError(f"{option}={value!r} must be a whole number from 0 to {SEEDS - 1}")


TYPES: dict[type, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (is_whole, "a whole number"),
    float: (is_finite, "a finite number"),
    str: (lambda value: isinstance(value, str), "text"),
}
"""Type of a field -> what its values are, and how that is called."""


def require_types(config: Any, group: str = "algo", infinite: Collection[str] = ()) -> None:
    """Check that every field of a dataclass has a value of its type, and a number that is one.

    Args:
        infinite: fields that may be infinity.

    Raises:
        ValueError: a value of another type, NaN, or infinity; names the field.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if value is None and NoneType in kinds:
            continue
        if float in kinds and value == math.inf and name in infinite:
            continue
        if list[float] in kinds and not (isinstance(value, list) and all(map(is_finite, value))):
            raise ValueError(f"{group}.{name}={value!r} must be a list of finite numbers")
        for kind, (fits, what) in TYPES.items():
            if kind in kinds and not fits(value):
                raise ValueError(f"{group}.{name}={value!r} must be {what}")
