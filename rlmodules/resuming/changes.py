"""Two runs' settings compared: what may differ, what is said, what is refused."""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlmodules.resuming.table import BEFORE, KNOWN, NEVER, Effect, effect_of

Settings = dict[str, Any]
"""Plain values by option: ``{"algo.learning_rate": 1e-5, "seed": 0}``."""
ABSENT = "(none)"


@dataclass(frozen=True)
class Change:
    """An option whose values in two runs differ."""

    option: str
    old: Any
    new: Any
    effect: Effect

    def __str__(self) -> str:
        old, new = (_shown(value) for value in (self.old, self.new))
        if old == new:  # digests are no reading
            return f"{self.option}={new} has another content than then"
        return f"{self.option}: {old} -> {new}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Options and values of nested settings; what is no plain value goes by its type's name."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            plain = json.dumps(value, default=lambda x: type(x).__name__)
            yield f"{prefix}{name}", json.loads(plain)


def references(raw: Mapping[str, Any]) -> dict[str, list[str]]:
    """Options that are written as interpolations -> the options that these name."""
    found = {name: re.findall(r"\$\{(\w[\w.]*)\}", str(value)) for name, value in flatten(raw)}
    return {name: named for name, named in found.items() if named}


def compare(
    old: Settings,
    new: Settings,
    *,
    algorithm: str = "",
    named: Mapping[str, list[str]] | None = None,
) -> list[Change]:
    """What differs and matters, in the order of ``new``.

    Runs that were started in two ways (``started_by``) know different options of each other, and
    are compared by those that both have. An option that only follows another one that differs
    (``named``, see ``references``) is not told again.
    """
    old = {name: value for name, value in BEFORE.items() if name in new} | old
    names: Collection[str] = dict.fromkeys([*new, *old])
    if old.get("started_by") != new.get("started_by"):
        names = [name for name in new if name in old and name != "started_by"]
    differing = [name for name in names if _differ(old.get(name, ABSENT), new.get(name, ABSENT))]
    targets = [name for name in differing if name.endswith("._target_")]
    changes = []
    for name in differing:
        # Of another kind of environment, everything is another one.
        within = [t for t in targets if name.startswith(t.removesuffix("_target_")) and name != t]
        if within or follows(name, differing, named or {}):
            continue
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        effect = effect_of(name, algorithm)
        if name == "algo.beta" and algorithm == "GRPO" and 0 in (before, after):
            effect = Effect.ORDER  # with a reference or without
        if effect == Effect.LENGTH and not _follows_length(new):
            effect = Effect.NONE
        if effect != Effect.NONE:
            changes.append(Change(name, before, after, effect))
    return changes


def _differ(old: Any, new: Any) -> bool:
    if _has_digest(old) and _has_digest(new):
        return bool(old["digest"] != new["digest"])
    old, new = (value["shown"] if _has_digest(value) else value for value in (old, new))
    return bool(old != new)


def _has_digest(value: Any) -> bool:
    return isinstance(value, dict) and "digest" in value


def follows(name: str, differing: Collection[str], named: Mapping[str, list[str]]) -> bool:
    """Whether ``name`` is an interpolation of another option that differs."""
    owner = name
    while owner and owner not in named:
        owner = owner.rpartition(".")[0]
    rest = name.removeprefix(owner)
    return any(f"{source}{rest}" in differing for source in named.get(owner, ()))


def _follows_length(settings: Settings) -> bool:
    """Whether the learning rate depends on how long the run is."""
    return settings.get("algo.lr_scheduler_type", "constant") != "constant"


def require_known(allow: Collection[str], options: Collection[str]) -> None:
    """
    Raises:
        ValueError: ``resume.allow`` names an option that there is not.
    """
    known = {*options, *KNOWN}
    known |= {name.rpartition(".")[0] for name in known if "." in name}
    for name in allow:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
            raise ValueError(f"resume.allow: there is no option {name!r}; do you mean {near[0]!r}?")


def allowed(change: Change, allow: Collection[str]) -> bool:
    """Whether ``allow`` names the option or a group that it is in."""
    return any(change.option == name or change.option.startswith(f"{name}.") for name in allow)


def refused(
    changes: Collection[Change], allow: Collection[str], within: str | None
) -> list[Change]:
    """Changes that a run does not go on with.

    Args:
        within: what a checkpoint in its middle is in the middle of; None between epochs.
    """
    stopping = (Effect.REFUSED, Effect.ORDER)
    return [
        change
        for change in changes
        if (change.effect == Effect.ORDER and within)
        or (change.effect in stopping and not allowed(change, allow))
    ]


def refusal(path: Any, changes: Collection[Change]) -> str:
    """Why a run does not go on from ``path`` with ``changes``, and what to do."""
    lines = "".join(f"\n  {change}" for change in changes)
    names = [change.option for change in changes]
    fixed = [name for name in names if name in NEVER]
    remedy = (
        f" ({fixed[0]} is part of the checkpoint), or start a new run from its exported model"
        if fixed
        else f", or with the new ones all the same: resume.allow=[{','.join(names)}]"
    )
    return (
        f"the checkpoint {path} is of a run with other settings, so that the result would be of"
        f" neither:{lines}\nGo on with the old values{remedy}"
    )


def too_late(path: Any, changes: Collection[Change], within: str) -> str:
    """Why not even ``resume.allow`` helps."""
    lines = "".join(f"\n  {change}" for change in changes)
    return (
        f"the checkpoint {path} is in the middle of {within}, whose remaining batches are those of"
        f" the old values:{lines}\nGo on with these to its end, and change them from there"
    )


def _shown(value: Any) -> str:
    if _has_digest(value):
        return str(value["shown"])
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
