"""Compares formulas in a process of its own, which ``formulas`` starts and replaces.

A request is a line of JSON ``[expected, answer, seconds]`` of plain LaTeX, its reply a line:
``equal``, ``other``, or ``unreadable`` where the expected formula is none. What takes longer ends
the process: only a signal's default action stops a power of huge integers, and it does so even
where the process that asked is gone. The file is run by its path: of the package it imports only
what imports no torch.
"""

import json
import logging
import os
import resource
import signal
import sys

STARTUP_S = 120.0
MEMORY = 2**31
"""Bytes of address space; an answer that wants more is wrong."""


def reply(expected: str, answer: str) -> str:
    from datamodules.mathematics.algebra import Unreadable
    from datamodules.mathematics.shapes import same

    try:
        return "equal" if same(expected, answer) else "other"
    except Unreadable:
        return "unreadable"
    except Exception:  # what cannot be compared is not equal
        return "other"


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, STARTUP_S)
    logging.disable(logging.CRITICAL)
    reply("x+1", r"1+\frac{x}{1}")
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies.write("ready\n")
    for line in sys.stdin:
        expected, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        said = reply(expected, answer)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(f"{said}\n")


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]  # its modules shadow no others
    sys.path.insert(0, os.path.dirname(os.path.dirname(here)))
    main()
