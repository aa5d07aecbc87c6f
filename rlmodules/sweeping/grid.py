"""A grid of settings: every combination of the values that options were given."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from rlmodules.sweeping.folders import folder_names
from rlmodules.sweeping.jobs import Job

ABOUT_THE_SWEEP = ("sweep.", "hydra.", "hydra/")
"""Overrides that no job is told."""


@dataclass(frozen=True)
class Grid:
    """What a sweep runs.

    Attributes:
        fixed: options of all jobs -> their value, as typed.
        space: options that are swept -> their values.
        jobs: with folders that are relative to the sweep's.
    """

    fixed: dict[str, str]
    space: dict[str, list[Any]]
    jobs: tuple[Job, ...]


def make_grid(overrides: Sequence[Override]) -> Grid:
    """
    Raises:
        ValueError: an option has a range to search in, no values, or a value twice.
    """
    told = [o for o in overrides if not o.key_or_group.startswith(ABOUT_THE_SWEEP)]
    last = {override.get_key_element(): override for override in told}
    columns: dict[str, list[tuple[str, str, Any]]] = {}  # override, option, value
    fixed, space = {}, {}
    for key, override in last.items():
        option = key.lstrip("+~")
        if not override.is_sweep_override():
            assert override.input_line is not None
            columns[key] = [(override.input_line, option, None)]
            fixed[option] = override.get_value_element_as_str()
            continue
        columns[key] = list(_choices(override))
        space[option] = [value for _, _, value in columns[key]]
    settings, lines = [], []
    for combination in itertools.product(*columns.values()):
        lines.append(tuple(line for line, _, _ in combination))
        settings.append({option: value for _, option, value in combination if option in space})
    jobs = [
        Job(line, Path(name), setting)
        for line, name, setting in zip(lines, folder_names(settings), settings, strict=True)
    ]
    return Grid(fixed, space, tuple(jobs))


def _choices(override: Override) -> Iterable[tuple[str, str, Any]]:
    key = override.get_key_element()
    if not override.is_discrete_sweep():
        raise ValueError(
            f"{override.input_line}: a range has no end of values: list some"
            f" ({key}=1e-6,1e-5), or search in it (hparams_search=optuna)"
        )
    lines = list(override.sweep_string_iterator())
    values = [Override._convert_value(value) for value in override.sweep_iterator()]  # type: ignore
    if not lines or len(set(lines)) < len(lines):
        what = "a value is there twice" if lines else "there are no values"
        raise ValueError(f"{override.input_line}: {what}")
    for line, value in zip(lines, values, strict=True):
        yield f"{key}={line}", key.lstrip("+~"), value


def covering(jobs: Sequence[Job], most: int) -> list[Job]:
    """All jobs; of more than ``most``, some that have every value between them."""
    if len(jobs) <= most:
        return list(jobs)
    seen: set[str] = set()
    chosen = []
    for job in jobs:
        if new := set(job.overrides) - seen:
            chosen.append(job)
            seen |= new
    return chosen
