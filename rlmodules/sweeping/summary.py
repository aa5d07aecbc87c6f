"""The end of a sweep: what failed, what is left, and how the settings compare."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlmodules.reports.files import CONFIG
from rlmodules.sweeping.board import name_of
from rlmodules.sweeping.jobs import LOG, Job, read_failure, read_result


def summarize(
    jobs: Sequence[Job], folder: Path, metric: str, line: str, console: Console
) -> list[Job]:
    """Print the end of the sweep; returns the jobs that failed.

    Args:
        line: the command that goes on with it.
    """
    results = {job.folder: read_result(job.folder) for job in jobs}
    failures = {job.folder: read_failure(job.folder) for job in jobs}
    done = [job for job in jobs if results[job.folder]]
    failed = [job for job in jobs if not results[job.folder] and failures[job.folder]]
    if done:
        compare_settings(jobs, folder, metric, console)
    counts = [f"{len(done)} of {len(jobs)} jobs are done"]
    counts += [f"{len(failed)} failed"] if failed else []
    left = len(jobs) - len(done) - len(failed)
    counts += [f"{left} are to be gone on with"] if left else []
    _say(console, f"{', '.join(counts)}: {folder}")
    for job in failed:
        said = (failures[job.folder] or {})["error"]
        _say(console, f"  {name_of(job)}: {said} ({job.folder / LOG})", style="red")
    if left:
        _say(console, f"Go on with: {line}")
    if failed:
        _say(console, f"Try again what failed: {line} sweep.retry_failed=true")
    return failed


def compare_settings(jobs: Sequence[Job], folder: Path, metric: str, console: Console) -> None:
    """Print the table of settings, and write it into the sweep's folder."""
    from rlmodules.reports.comparison import compare  # these take half a second
    from rlmodules.reports.sweep_files import write
    from rlmodules.reports.table import show

    places = [job.folder for job in jobs if (job.folder / CONFIG).is_file()]
    try:
        comparison = compare(places, metric)
    except ValueError as error:  # not all that is swept trains: task=evaluate
        _say(console, f"The settings are not compared: {error}")
        print_values([job for job in jobs if read_result(job.folder)], metric, console)
        return
    show(comparison, console, without=False)
    written = write(comparison, folder)
    _say(console, f"Written: {', '.join(map(str, written))}")


def print_values(jobs: Sequence[Job], metric: str, console: Console) -> None:
    """A line a job: its name and its value."""
    table = Table("job", metric, box=None, pad_edge=False)
    for job in jobs:
        value = (read_result(job.folder) or {}).get("value")
        table.add_row(Text(name_of(job)), "" if value is None else f"{value:.4g}")
    console.print(table)


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
