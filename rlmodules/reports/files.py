"""Files of a run's folder that others read, and how far a run says that it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, REPORT, ERROR = "config.yaml", "report.json", "error.txt"
"""Of any run: its settings, its end, and what ended it before."""
JOB, LOG, PROGRESS, PAUSE, RESULT = "job.json", "job.log", "progress.json", "pause", "result.json"
FAILURE = "failure.json"
"""Of a sweep's job besides, see ``sweeping/jobs.py``."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        unit: what is counted: ``iteration`` of online algorithms, ``step`` of others.
        done, total: of these.
        metrics: the latest of each by name.
        held_out: what was evaluated after ``done`` units: ``[(0, {"val/reward": 0.2}), ...]``.
        seconds: since the run began, those before an interruption too.
    """

    unit: str
    done: int
    total: int
    metrics: dict[str, float]
    held_out: list[tuple[int, dict[str, float]]]
    seconds: float


def read_progress(folder: Path) -> Progress | None:
    """How far the run of ``folder`` is; None while it has not begun."""
    try:
        found = json.loads((folder / PROGRESS).read_text())
    except FileNotFoundError:
        return None
    held_out = [(int(done), metrics) for done, metrics in found.pop("held_out")]
    return Progress(held_out=held_out, **found)


def read_result(folder: Path) -> dict[str, Any] | None:
    """What ``write_result`` wrote: ``metric``, ``value`` and more; None if the run is not done."""
    try:
        return dict(json.loads((folder / RESULT).read_text()))
    except FileNotFoundError:
        return None
