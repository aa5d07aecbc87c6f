"""Compares formulas by math-verify in a process of its own, which ``answers`` starts and replaces.

A request is a line of JSON ``[expected, answer, seconds]``, its answer a line ``1`` or ``0``. What
takes longer ends the process: only a signal's default action stops a power of huge integers, and
it does so even where the process that asked is gone. The file is run by its path, without the
package around it, whose imports (torch) would take seconds.
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


def equal(expected: str, answer: str) -> bool:
    """Whether two formulas in LaTeX are equal by math-verify (Kydlicek and Gandenberger, 2025)."""
    from math_verify import LatexExtractionConfig, parse, verify

    # Without time limits of its own: those raise Python exceptions, which sympy may swallow.
    sides = [
        parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)
        for text in (expected, answer)
    ]
    return verify(*sides, timeout_seconds=None)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no reply
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, STARTUP_S)
    logging.disable(logging.CRITICAL)
    equal("x", "x")
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies.write("ready\n")
    for line in sys.stdin:
        expected, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = equal(expected, answer)
        except Exception:  # what cannot be read is not equal
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(f"{int(verdict)}\n")


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]  # its modules shadow no others
    main()
