"""``benchmark.json`` of a run's folder: what ``task=benchmark`` measured before and after it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARK = "benchmark.json"
COLUMNS = ("before", "after", "difference")
"""Each has its standard error beside it, ``before_stderr`` and so on, where there is one."""


def read_benchmark(folder: Path) -> dict[str, Any]:
    """What stands there: ``rows``, and ``asked``, of what lm-eval was asked for; empty if nothing.

    Raises:
        ValueError: it cannot be read.
    """
    path = folder / BENCHMARK
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} cannot be read, remove it: {error}") from error


def label(row: Mapping[str, Any]) -> str:
    """What a row is of: ``arc_easy, acc, 0-shot``."""
    told = [row["task"], row["metric"], *([row["filter"]] if row["filter"] != "none" else [])]
    return ", ".join([*told, *([] if row["shots"] is None else [f"{row['shots']}-shot"])])


def cell(row: Mapping[str, Any], column: str) -> str:
    """A value with its standard error: ``0.250 ± 0.131``."""
    value, error = row.get(column), row.get(f"{column}_stderr")
    if value is None:
        return "-"
    sign = "+" if column == "difference" else ""
    return f"{value:{sign}.3f}" + ("" if error is None else f" ± {error:.3f}")


def lines(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of text a figure: what it is of, examples, before, after, difference."""
    return [
        (label(row), "-" if row["n"] is None else str(row["n"]), *(cell(row, c) for c in COLUMNS))
        for row in found.get("rows", ())
    ]
