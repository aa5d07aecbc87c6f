"""Names of the folders of a sweep's jobs: what differs, ``lr=3e-5,seed=1``."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rlmodules.reports.names import label, short_names

LONGEST = 100
"""Characters of a name: file systems take 255 bytes, and paths of some tools not many more."""
ALONE = "run"
"""The folder of a sweep in which nothing differs."""


def folder_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each job: short, safe for file systems, and no other job's.

    Args:
        settings: of each job, the options that differ between them.
    """
    options = list(dict.fromkeys(option for setting in settings for option in setting))
    names = short_names(options)
    named = {option: _values(option, settings) for option in options}
    made = [
        _safe(label({o: named[o][_key(v)] for o, v in setting.items()}, names)) or ALONE
        for setting in settings
    ]
    folded = [name.casefold() for name in made]  # some file systems take a and A for one
    return [
        name
        if folded.count(name.casefold()) == 1 and len(name) <= LONGEST
        else f"{name[: LONGEST - 9].rstrip(' .')}-{_digest(setting)}"
        for name, setting in zip(made, settings, strict=True)
    ]


def _values(option: str, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Values of an option by themselves -> as they are named: of paths, the last part if that
    tells them apart."""
    values = {_key(setting[option]): setting[option] for setting in settings if option in setting}
    paths = [value for value in values.values() if isinstance(value, str) and "/" in value]
    last = {value: PurePath(value).name for value in paths}
    if len(set(last.values())) < len(paths):
        return values
    return {
        key: last.get(value, value) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _safe(name: str) -> str:
    bare = re.sub(r"""[][{}"']""", "", name)  # x=-1,2 would say something else than x=[1,2]
    return re.sub(r"[^A-Za-z0-9_.,=+@-]+", "-", bare).strip("-. ")


def _digest(setting: Mapping[str, Any]) -> str:
    return hashlib.sha256(_key(setting).encode()).hexdigest()[:8]
