"""Short names: what runs differ in, in as few characters as tell them apart."""

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any
from zlib import crc32

LONGEST = 40
"""Characters of a value."""
USUAL = {"learning_rate": "lr"}
"""What everybody calls an option."""


def short_names(options: Iterable[str]) -> dict[str, str]:
    """Options -> their last words, as many as tell them apart.

    ``algo.learning_rate`` is ``lr``; beside ``model.lora.r``, ``env.r`` is ``env.r`` and the other
    one ``lora.r``.
    """
    parts = {option: option.split(".") for option in dict.fromkeys(options)}
    for words in parts.values():
        words[-1] = USUAL.get(words[-1], words[-1])
    taken = dict.fromkeys(parts, 1)
    while True:
        names = {option: ".".join(words[-taken[option] :]) for option, words in parts.items()}
        alike = [o for o in names if list(names.values()).count(names[o]) > 1]
        longer = [option for option in alike if taken[option] < len(parts[option])]
        if not longer:
            return names
        for option in longer:
            taken[option] += 1


def short_value(value: Any) -> str:
    """``value`` as one would type it: ``3e-5``, ``true``, ``[1,2]``."""
    if isinstance(value, float):
        plain = repr(value).removesuffix(".0")
        if not math.isfinite(value):
            return plain
        powered = f"{Decimal(repr(value)).normalize():e}".replace("e+", "e")
        return min(plain, powered, key=len)
    if not isinstance(value, str):
        value = json.dumps(value, separators=(",", ":"), default=str).replace('"', "")
    if len(value) > LONGEST:  # its end is what it is told apart by
        return f"{value[: LONGEST - 9]}~{crc32(value.encode()):08x}"
    return value


def label(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> str:
    """``lr=3e-5,model=tiny``: a setting's name."""
    names = names or short_names(values)
    return ",".join(f"{names[option]}={short_value(value)}" for option, value in values.items())
