"""In what runs differ, and which of them therefore are one setting with several seeds."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlmodules.reports.names import label, short_names
from rlmodules.reports.runs import Run, parted
from rlmodules.resuming.changes import ABSENT, follows
from rlmodules.resuming.table import GROUPS_AROUND, OPTIONS_AROUND

ONLY_IF_SAID = ("callbacks", "export", "suggested")
"""Groups and options that make another run if an override names an option of theirs."""
NEVER = {*GROUPS_AROUND, *OPTIONS_AROUND, "hydra", "hparams_search"} - {*ONLY_IF_SAID}
"""Those that make none."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
Values = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: its values, shortened: ``lr=3e-5,model=tiny``; ``all`` if there is no other.
        values: by option, of those in which the settings differ.
        runs: in the order in which they were given.
    """

    name: str
    values: Mapping[str, Any]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Grouping:
    """Runs by setting.

    Attributes:
        names: options in which the settings differ -> their short names.
        settings: in the order of their first runs.
        consequences: options that differ too, for other choices bring other defaults.
        unplaced: runs that ended before they had settings, and whose overrides do not say enough.
    """

    names: Mapping[str, str]
    settings: tuple[Setting, ...]
    consequences: tuple[str, ...] = ()
    unplaced: tuple[Run, ...] = ()


def group(runs: Sequence[Run]) -> Grouping:
    """Tell runs apart by what they were told, and by what else differs in their settings."""
    told = {run: _told(run) for run in runs}
    known = [run for run in runs if run.settings] or list(runs)
    options, consequences = _differing({run: told[run] for run in known})
    rows: dict[str, tuple[Values, list[Run]]] = {}
    unplaced = []
    for run in runs:
        found = [_value(name, run, told, known) for name in options]
        plain = [value[0] for value in found if value is not None]
        if len(plain) < len(found):
            unplaced.append(run)
        else:
            values = dict(zip(options, plain, strict=True))
            rows.setdefault(_key(values), (values, []))[1].append(run)
    names = short_names(options)
    settings = (Setting(label(v, names) or "all", v, tuple(found)) for v, found in rows.values())
    return Grouping(names, tuple(settings), tuple(consequences), tuple(unplaced))


def _told(run: Run) -> Values:
    """All that is known of the run's settings, without its own folder, and of its choices."""
    choices = {name: value for name, value in run.choices.items() if name not in ONLY_IF_SAID}
    if not run.settings:
        return {n: read_value(value) for n, value in map(parted, run.overrides)} | choices
    folders = run.folder, run.folder.absolute(), run.settings.get("paths.output_dir", "")
    places = [str(place) for place in folders if len(str(place)) > 1]
    return {name: _elsewhere(v, places) for name, v in run.settings.items()} | choices


def _elsewhere(value: Any, places: Sequence[str]) -> Any:
    for place in places if isinstance(value, str) else ():
        value = value.replace(place, "(its folder)")
    return value


def _differing(told: Mapping[Run, Values]) -> tuple[list[str], list[str]]:
    """Options that name a setting, and those that only follow from their choice."""
    overridden = dict.fromkeys(parted(text)[0] for run in told for text in run.overrides)
    every = dict.fromkeys([*overridden, *(name for values in told.values() for name in values)])
    differing = [n for n in every if len({_key(v.get(n, ABSENT)) for v in told.values()}) > 1]
    named = {name: sources for run in told for name, sources in run.named.items()}
    own = [
        name
        for name in differing
        if _makes_a_setting(name, overridden)
        and not _is_seed(name, told, overridden)
        and (name in overridden or not follows(name, differing, named))
    ]
    choices = {name for run in told for name in run.choices}
    options = [name for name in own if name in overridden]
    consequences: list[str] = []
    for name in sorted(own, key=lambda name: name not in choices):
        if name not in options:
            follow = not choices.isdisjoint(options) and _is_function(name, options, told)
            (consequences if follow else options).append(name)
    return options, consequences


def _makes_a_setting(name: str, overridden: Collection[str]) -> bool:
    group = name.partition(".")[0]
    return group not in NEVER and (name in overridden or group not in ONLY_IF_SAID)


def _is_seed(name: str, told: Mapping[Run, Values], overridden: Collection[str]) -> bool:
    if name == "seed":
        return True
    seeds = name.endswith(".seed") and name not in overridden
    return seeds and all(values.get(name) == values.get("seed") for values in told.values())


def _is_function(name: str, options: Sequence[str], told: Mapping[Run, Values]) -> bool:
    """Whether runs that are alike in ``options`` are alike in ``name``."""
    seen: dict[str, str] = {}
    for values in told.values():
        value = _key(values.get(name, ABSENT))
        if seen.setdefault(_key([values.get(o, ABSENT) for o in options]), value) != value:
            return False
    return True


def _value(
    option: str, run: Run, told: Mapping[Run, Values], known: Sequence[Run]
) -> tuple[Any] | None:
    """The run's value of ``option``; None if it ended before it had any, and nothing tells.

    One that it does not name is what all others have that do not name it either.
    """
    if run in known or option in told[run]:
        return (told[run].get(option, ABSENT),)
    others = [other for other in known if option not in map(_name, other.overrides)]
    defaults = {_key(told[other].get(option, ABSENT)): other for other in others}
    other = next(iter(defaults.values()), None)
    return (told[other].get(option, ABSENT),) if other and len(defaults) == 1 else None


def _name(override: str) -> str:
    return parted(override)[0]


def read_value(text: str) -> Any:
    """What Hydra makes of the right side of an override, as far as sweeps have it."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _key(value: Any) -> str:
    """Equal for equal values, ``1`` and ``1.0`` too."""
    if isinstance(value, list):
        return f"[{','.join(map(_key, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_key(value[name])}' for name in sorted(value))}}}"
    return json.dumps(float(value) if type(value) is int else value)
