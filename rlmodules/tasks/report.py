"""``task=report``: write a run's ``report.html`` again, from what its folder holds."""

from pathlib import Path

from rlmodules.reports.reading import find_runs, is_run, read_run
from rlmodules.reports.run_page import findings, write_run_page
from rlmodules.reports.verdict import verdict


def report(run: str, output_root: str, sweep_root: str) -> str:
    """The verdict on a run and where its page is.

    Args:
        run: its folder, or ``last``: the newest below the two roots.

    Raises:
        ValueError: there is no such run.
    """
    folder = newest([output_root, sweep_root]) if run == "last" else Path(run)
    if not is_run(folder):
        raise ValueError(
            f"run={run} is no run's folder: it holds neither config.yaml nor report.json. Name one,"
            " run=outputs/2026-01-31/12-00-00, or run=last"
        )
    read = read_run(folder)
    page = write_run_page(read)
    return "\n".join([*verdict(read), *map(str, findings(read)), f"See {page}"])


def newest(roots: list[str]) -> Path:
    """The run below ``roots`` that was started last.

    Raises:
        ValueError: there is none.
    """
    there = [root for root in roots if Path(root).is_dir()]
    runs = [folder for root in there for folder in find_runs([root])] if there else []
    if not runs:
        raise ValueError(f"run=last: there is no run below {' or '.join(roots)}")
    return max(runs, key=lambda folder: (folder / "config.yaml").stat().st_mtime)
