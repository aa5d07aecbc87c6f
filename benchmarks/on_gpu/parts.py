"""A part of a run on a card: it has a time limit, and what it finds is written at once.

A part that raises, or takes too long, loses no other one's result.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """
    Raises:
        TimeoutError: what is within took longer (noticed when Python next runs).
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(max(seconds, 1))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Parts:
    """Runs parts one after the other, and notes each one's result.

    Args:
        file: a JSON line a part is added to it.
        seconds: for all of them.
        only: beginnings of the names of those to run; none for all.
    """

    def __init__(self, file: Path, seconds: float, only: list[str]) -> None:
        self.file, self.end, self.only = file, time.monotonic() + seconds, only

    def run(self, name: str, part: Callable[[], Result], *, seconds: int = 60) -> Result | None:
        """What ``part`` returns; None where it failed, or there was no time left."""
        if self.only and not any(name.startswith(one) for one in self.only):
            return None
        start, left = time.monotonic(), int(self.end - time.monotonic())
        if left < 5:
            self.note(name, {"error": "no time was left"}, 0.0)
            return None
        try:
            with limited(min(seconds, left)):
                result = part()
        except BaseException as error:  # a card's failures are of any class
            lines = traceback.format_exc().splitlines()
            self.note(name, {"error": f"{type(error).__name__}: {error}"[:600],
                             "traceback": lines[-14:]}, time.monotonic() - start)  # fmt: skip
            if isinstance(error, KeyboardInterrupt):
                raise
            return None
        self.note(name, result, time.monotonic() - start)
        return result

    def note(self, name: str, result: Result, seconds: float) -> None:
        """Write and print a result."""
        row = {"part": name, "took_s": round(seconds, 1)} | result
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row, default=str) + "\n")
        print(shown(row), file=sys.stderr, flush=True)


def shown(row: Result) -> str:
    """A row as a line to read."""
    rest = {k: v for k, v in row.items() if k not in ("part", "took_s", "traceback")}
    said = json.dumps({k: rounded(v) for k, v in rest.items()}, default=str)
    failed = "FAILED " if "error" in row else ""
    return f"[{row['took_s']:6.1f} s] {failed}{row['part']}: {said[:1500]}"


def rounded(value: Any) -> Any:
    """Floats with four digits, inside lists and dicts too."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Standard error is for results alone."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def arguments(description: str) -> argparse.ArgumentParser:
    """What every file of parts is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", required=True, type=Path, help="JSON lines are added to it")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--seconds", type=float, default=600, help="for all parts")
    parser.add_argument("--only", nargs="*", default=[], help="parts whose names begin so")
    return parser
