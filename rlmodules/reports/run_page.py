"""``report.html``: what came of one run, as one page; rebuilt from what its folder holds."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlmodules.metrics.course import Course
from rlmodules.metrics.health import Finding, check
from rlmodules.reports import benchmarks, held_out
from rlmodules.reports.charts import number, said
from rlmodules.reports.environment import read_start
from rlmodules.reports.files import REPORT
from rlmodules.reports.reading import is_run, read_run
from rlmodules.reports.run_curves import charts
from rlmodules.reports.runs import Run
from rlmodules.reports.token_files import COLUMNS, read_tokens
from rlmodules.reports.verdict import verdict
from rlmodules.resuming.changes import flatten
from rlmodules.views.pages import write_page

PAGE = "report.html"
SAMPLES = 12
"""Prompts whose responses are shown, before and after."""


def write_run_page(run: Run) -> Path:
    """Write ``report.html`` into a run's folder, and say where it is."""
    folder = run.folder
    start = run.report.get("run") or read_start(folder)
    first, others = charts(run)
    tokens, count = read_tokens(folder)
    values = {
        "title": run.name,
        "state": state(run),
        "verdict": verdict(run),
        "findings": findings(run),
        "command": shlex.join(["python", "train.py", *run.overrides]),
        "charts": first,
        "other_charts": others,
        "weight": 0.6 if (run.length or 0) >= 20 else 0.0,
        "benchmark": benchmarks.lines(benchmarks.read_benchmark(folder)),
        "samples": samples(run),
        "changed": changed(run, start),
        "settings": [(name, said(value)) for name, value in sorted(run.settings.items())],
        "environment": environment(start, run),
        "tokens": {"iterations": tokens, "columns": COLUMNS, "of": count},
        "online": run.unit == "iteration",
    }
    write_page(folder / PAGE, "report.html", **values)
    return folder / PAGE


def run_of(folder: Path, report: Mapping[str, Any]) -> Run:
    """The run of ``folder``, as if ``report`` was its ``report.json`` already."""
    run = read_run(folder) if is_run(folder) else Run(folder)
    return replace(run, report=report, status="done", error="")


def findings(run: Run) -> list[Finding]:
    """What the health check says."""
    if run.report.get("history"):
        course = Course.of_report(run.report, run.settings)
    else:
        # An epoch's metrics stand in one row of the CSV, evaluations in another.
        rows = [row for row in run.rows if any(key.startswith("train/") for key in row)]
        if run.unit == "iteration":  # the loggers' step is another count
            rows = [{k: v for k, v in row.items() if k != "step"} for row in rows]
        evaluated = [(int(at), {"val/reward": value}) for at, value in run.curve("val/reward")]
        course = Course(rows, evaluated, run.settings)
    return check(course) if course.rows else []


def state(run: Run) -> str:
    """How far it is, and what became of it."""
    total = run.progress.total if run.progress else None
    rest = f" of {total}" if total and not run.done else ""
    length = "" if run.length is None else f"{number(run.length)}{rest}"
    unit = run.unit if run.length == 1 and not rest else f"{run.unit}s"
    took = "" if run.seconds is None else f" in {duration(run.seconds)}"
    if run.done:
        return f"{length} {unit}{took}.".strip()
    ended = f"It ended with: {run.error}" if run.error else f"There is no {REPORT}"
    return f"This run is not finished: {length or 'no'} {unit} are done{took}. {ended}."


def duration(seconds: float) -> str:
    """``1 h 12 min``, ``3 min 5 s``, ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] if hours else []
    parts += [f"{minutes} min"] if minutes else []
    return " ".join(parts + ([f"{rest} s"] if not hours else []))


def samples(run: Run) -> dict[str, Any]:
    """Responses to the same prompts at the first and the last evaluation; those whose reward
    changed most come first, by turns for the better and for the worse."""
    both = held_out.ends(run)
    if both is None:
        return {"rows": [], "of": 0}
    firsts = [{row["prompt"]: row for row in reversed(rows)} for rows in both]
    pairs = [(firsts[0][prompt], row) for prompt, row in firsts[1].items() if prompt in firsts[0]]
    gain = lambda pair: (held_out.reward(pair[1]) or 0) - (held_out.reward(pair[0]) or 0)  # noqa: E731
    ranked = sorted(pairs, key=gain, reverse=True)
    turns = [ranked[i // 2] if i % 2 == 0 else ranked[-1 - i // 2] for i in range(len(ranked))]
    return {"rows": turns[:SAMPLES], "of": len(pairs)}


def changed(run: Run, start: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Options that are not as the algorithm has them: name, value, its own, who said so."""
    typed = {o.lstrip("+~").partition("=")[0] for o in run.overrides}
    own = dict(flatten(start.get("defaults", {})))
    rows = []
    for name, value in run.settings.items():
        differs = name in own and own[name] != value
        if differs or name in typed:
            by = "command" if name in typed else "conf/"
            rows.append((name, said(value), said(own[name]) if name in own else "", by))
    return sorted(rows, key=lambda row: (row[3] != "command", row[0]))


def environment(start: Mapping[str, Any], run: Run) -> list[tuple[str, str]]:
    """Labels and values of what the run was made of."""
    rows = [("folder", str(run.folder)), ("seed", said(run.seed))]
    rows += [("started", ", ".join(start.get("started", [])))]
    for name, label in (("git", "commit"), ("git_of_folder", "commit of the folder")):
        if found := start.get(name):
            rows.append((label, found["commit"] + (", with changes" if found["dirty"] else "")))
    rows += [(name, said(value)) for name, value in start.get("versions", {}).items()]
    machine = start.get("machine", {})
    rows += [
        (name.replace("_gb", " (GB)"), ", ".join(value) if isinstance(value, list) else said(value))
        for name, value in machine.items()
    ]
    return [(name, value) for name, value in rows if value]
