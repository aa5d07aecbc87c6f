"""What a sweep was asked for, in its folder: so that it goes on as what it is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text
from rlmodules.sweeping.grid import Grid
from rlmodules.sweeping.jobs import Job

PLAN = "plan.json"
MAY_CHANGE = ("logger", "paths", "callbacks.progress")
"""Options that change no job's result."""


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        grid: its space and its jobs.
        launcher: that it was last run by.
        command: that it was last run by.
    """

    grid: Grid
    launcher: str
    command: tuple[str, ...]


def write_plan(folder: Path, plan: Plan) -> None:
    """Keep ``plan`` in the sweep's folder."""
    jobs = [
        {"folder": str(j.folder), "overrides": list(j.overrides), "swept": dict(j.swept)}
        for j in plan.grid.jobs
    ]
    said = asdict(plan.grid) | {"jobs": jobs, "launcher": plan.launcher, "command": plan.command}
    write_text(folder / PLAN, json.dumps(said, indent=1, default=str))


def read_plan(folder: Path) -> Plan | None:
    """What ``write_plan`` kept; None if there is none."""
    try:
        found = json.loads((folder / PLAN).read_text())
    except FileNotFoundError:
        return None
    jobs = [Job(tuple(j["overrides"]), Path(j["folder"]), j["swept"]) for j in found["jobs"]]
    grid = Grid(found["fixed"], found["space"], tuple(jobs))
    return Plan(grid, found["launcher"], tuple(found["command"]))


def require_same(folder: Path, old: Grid, new: Grid) -> None:
    """
    Raises:
        ValueError: the sweep in ``folder`` was of other options, which are named.
    """
    values = [{o: [v] for o, v in g.fixed.items()} | g.space for g in (old, new)]
    changes = list(_changes(*values))
    if changes:
        lines = "".join(f"\n  {change}" for change in changes)
        raise ValueError(
            f"{folder} holds a sweep of other options, whose jobs would stand beside these as if"
            f" they were of one:{lines}\nGo on with the old options, or leave hydra.sweep.dir= out"
            " for a sweep of its own"
        )


def _changes(old: Mapping[str, Sequence[Any]], new: Mapping[str, Sequence[Any]]) -> list[str]:
    found = []
    for option in dict.fromkeys([*old, *new]):
        before, after = (_said(side[option]) if option in side else "(none)" for side in (old, new))
        if before != after and not option.startswith(MAY_CHANGE):
            found.append(f"{option}: {before} -> {after}")
    return found


def _said(values: Sequence[Any]) -> str:
    words = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return ",".join(sorted(words))
