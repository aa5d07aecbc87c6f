"""Finding runs below folders, and reading what each folder says of its run."""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import yaml

from rlmodules.reports.environment import read_start
from rlmodules.reports.files import (
    CONFIG,
    ERROR,
    FAILURE,
    JOB,
    LOG,
    PROGRESS,
    REPORT,
    RESULT,
    Progress,
    read_progress,
    read_result,
)
from rlmodules.reports.runs import Run, parted
from rlmodules.resuming.changes import flatten, references

HYDRA = ".hydra"
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast


def read_run(folder: str | Path) -> Run:
    """What ``folder`` says of its run.

    Raises:
        ValueError: it is no run's folder, or a file in it cannot be read.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise ValueError(f"{folder} is no run's folder: it has neither {CONFIG} nor {JOB}")
    job, hydra = _json(folder / JOB), _yaml(folder / HYDRA / "hydra.yaml").get("hydra", {})
    overrides = job.get("overrides") or _yaml(folder / HYDRA / "overrides.yaml", [])
    report, result, progress = _json(folder / REPORT), read_result(folder), read_progress(folder)
    status, number = _status(folder, progress), hydra.get("job", {}).get("num")
    return Run(
        folder=folder,
        settings=dict(flatten(_yaml(folder / CONFIG))),
        overrides=tuple(overrides),
        choices=_choices(hydra, overrides),
        named=references(_yaml(folder / HYDRA / CONFIG)),
        status=status,
        report=report if status == "done" else {},
        result=(result or {}) if status == "done" else {},
        progress=progress,
        error="" if status == "done" else _error(folder),
        number=number if isinstance(number, int) else None,
        start=read_start(folder),
    )


def read_runs(places: Iterable[str | Path]) -> list[Run]:
    """The runs at and below ``places``; a sweep's jobs in the order in which they were started.

    Raises:
        ValueError: there is no such folder, or no run in it, or a file cannot be read.
    """
    runs = [read_run(folder) for folder in find_runs(places)]
    sweeps: dict[Path, list[Run]] = {}
    for run in runs:
        sweeps.setdefault(run.folder.parent, []).append(run)
    for jobs in sweeps.values():
        if all(run.number is not None for run in jobs):
            jobs.sort(key=lambda run: run.number or 0)
    return [run for jobs in sweeps.values() for run in jobs]


def find_runs(places: Iterable[str | Path]) -> list[Path]:
    """Folders of runs: those named, those below them, and those that a pattern fits.

    Raises:
        ValueError: there is no such folder, or no run in it.
    """
    found: dict[Path, Path] = {}
    for place in places:
        here = Path(place).expanduser()
        below = [here] if here.exists() or not has_magic(str(place)) else _matching(str(here))
        runs = [run for folder in below for run in _below(folder)]
        if not runs:
            missing = "there is no such folder" if not here.exists() else f"no {CONFIG} is below it"
            raise ValueError(
                f"no run is found at {place}: {missing}. Name runs' folders, a sweep's folder or a"
                " pattern: runs=[outputs/2026-01-31/12-00-00,'multirun/*/*']"
            )
        found |= {run.resolve(): run for run in runs}
    return list(found.values())


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is one of a run."""
    return any((folder / name).is_file() for name in (CONFIG, JOB, REPORT))


def natural(path: Path) -> list[tuple[int, float, str]]:
    """A key by which job 10 comes after job 9, and ``lr=1e-5`` before ``lr=1e-4``."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", str(path))
    return [(0, 0.0, p) if i % 2 == 0 else (1, float(p), "") for i, p in enumerate(parts)]


def _matching(pattern: str) -> list[Path]:
    found = (Path(path) for path in glob(pattern, recursive=True))
    return sorted((path for path in found if path.is_dir()), key=natural)


def _below(folder: Path) -> list[Path]:
    """Runs at or below ``folder``; not inside of a run."""
    if is_run(folder):
        return [folder]
    found = []
    for here, folders, _ in os.walk(folder, followlinks=True):
        runs = [name for name in folders if is_run(Path(here, name))]
        found += [Path(here, name) for name in runs]
        folders[:] = [name for name in folders if name not in runs and not name.startswith(".")]
    return sorted(found, key=natural)


def _choices(hydra: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, str]:
    chosen = hydra.get("runtime", {}).get("choices", {})
    if not chosen:  # the run ended before Hydra wrote them
        chosen = {name: value for name, value in map(parted, overrides) if "." not in name}
        chosen.pop("seed", None)
    return {
        name: "null" if value is None else str(value)
        for name, value in chosen.items()
        if not name.startswith("hydra/")
    }


def _status(folder: Path, progress: Progress | None) -> str:
    ends = [path for path in (folder / RESULT, folder / REPORT) if path.is_file()]
    going_on = False
    if ends and progress is not None and progress.done < progress.total:
        told = (folder / PROGRESS).stat().st_mtime_ns  # it ended once, and was then made longer
        going_on = all(path.stat().st_mtime_ns < told for path in ends)
    if ends and not going_on:
        return "done"
    return "failed" if any((folder / n).is_file() for n in (ERROR, FAILURE)) else "unfinished"


def _error(folder: Path) -> str:
    if error := _json(folder / FAILURE).get("error"):
        return str(error)
    for name in (ERROR, LOG):
        path = folder / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if lines := [line.strip() for line in text.splitlines() if line.strip()]:
            return lines[-1]
    return ""


def _json(path: Path) -> dict[str, Any]:
    return _loaded(path, json.loads, {})


def _yaml(path: Path, default: Any = None) -> Any:
    return _loaded(path, lambda text: yaml.load(text, Loader), {} if default is None else default)


def _loaded(path: Path, load: Callable[[str], Any], default: Any) -> Any:
    try:
        return load(path.read_text(encoding="utf-8")) or default
    except FileNotFoundError:
        return default
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read, remove it or leave the run out: {error}"
        ) from error
