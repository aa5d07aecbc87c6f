"""What a job that failed says of it."""

import re
import signal
from pathlib import Path

TAIL = 20_000
"""Bytes of a log in which its end is looked for."""
TOLD, TRACEBACK = "\n(the traceback is in ", "Traceback (most recent call last):\n"
SHOWN = 300
"""Characters of an error that are shown."""


def meaning(status: int) -> str:
    """What an exit status says: ``exit status 3``, ``killed by signal 9 (SIGKILL), ...``."""
    number = -status if status < 0 else status - 128
    if status < 0 or status in (128 + signal.SIGKILL, 128 + signal.SIGSEGV, 128 + signal.SIGABRT):
        name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
        why = ", most likely for want of memory" if number == signal.SIGKILL else ""
        return f"killed by signal {number} ({name}){why}"
    return "ended without a result" if status == 0 else f"exit status {status}"


def last_error(log: Path, start: int = 0) -> str:
    """The line that says what went wrong, of what a log holds from ``start`` on.

    That is, of what ``train.py`` says last, the first line; of a traceback the exception's line;
    else the first line of the last paragraph.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - TAIL))
            text = file.read().decode(errors="replace").replace("\r", "\n")
    except OSError:
        return ""
    said, told, _ = text.rpartition(TOLD)
    _, raised, after = text.rpartition(TRACEBACK)
    if raised and not told:
        lines = [
            line for line in after.splitlines() if re.match(r"(\[rank\d+\]: )?[A-Za-z_]", line)
        ]
        return (lines or [""])[0][:SHOWN]
    paragraph = re.split(r"\n\s*\n", (said if told else text).strip())[-1]
    return paragraph.partition("\n")[0].strip()[:SHOWN]
