r"""Formulas: equal in shape, and part by part by computer algebra.

Lists, tuples, intervals and inequalities are compared as what they are: a number is no inequality,
``(1, 2)`` no ``[1, 2]``. What is left are single formulas. ``worker`` compares these in processes
that end themselves after the time allowed, so that no text can hold up training.
"""

import atexit
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from queue import LifoQueue

from datamodules.mathematics.values import closing

WORKER = Path(__file__).with_name("worker.py")
RELATIONS = {
    "<": "<",
    ">": ">",
    "\\leq": "<=",
    "\\geq": ">=",
    "\\neq": "!=",
    "\\in": "in",
    "\\notin": "notin",
    "\\to": "to",
    "\\subset": "subset",
    "\\equiv": "mod",
    "\\pmod": "mod",
    "\\mod": "mod",
    "\\bmod": "mod",
    "\\ldots": "dots",
    "\\dots": "dots",
    "\\cdots": "dots",
    "...": "dots",
}
RELATION = re.compile(
    r"[<>]|\.\.\.|\\(?:leq|geq|neq|in|notin|to|subset|equiv|p?mod|bmod|l?dots|cdots)(?![A-Za-z])"
)
OPEN, CLOSE = "([{", ")]}"
UNIT_BEHIND = re.compile(r"(?:\s*\\text\{[^{}]*\}(?:\^\{-?\d\})?|\^\{\s?\\circ\s?\})\s*$")
AND = re.compile(r"\\text\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|;|\\q?quad(?:\\text\{\})?")
TOLD = r"\\text\{(?:(?:the|an?|answer|is|value|of|so|thus|therefore|hence)\s?)+\}"


class Timeout(RuntimeError):
    """Computer algebra took longer than it may."""


def formulas_equal(expected: str, answer: str, timeout_s: float) -> bool | None:
    """Whether two formulas, in plain LaTeX, are equal; None if the expected one cannot be read.

    Raises:
        Timeout: it was not found out in time.
    """
    expected, answer = trimmed(expected), trimmed(answer)
    if not answer:
        return False
    if squeezed(expected) == squeezed(answer):
        return True
    if not _may_be_equal(expected, answer):
        return False
    return _ask(expected, answer, timeout_s)


def _may_be_equal(expected: str, answer: str) -> bool:
    """Whether two formulas are statements of one kind; an inequality may be an interval."""
    kinds = relations(expected), relations(answer)
    if kinds[0] == kinds[1] or "in" in (*kinds[0], *kinds[1]):
        return True
    orders, others = sorted(kinds, key=bool, reverse=True)
    interval = expected if others is kinds[0] else answer
    return (
        not others
        and {*orders} <= {"<", "<="}
        and re.search(r"[(\[].*,.*[)\]]", interval) is not None
    )


def trimmed(text: str) -> str:
    """Without the signs, units and words around a formula."""
    text = re.sub(rf"^(?:[\s$*]|\\(?:therefore|approx|sim|implies)\b|{TOLD})+", "", text)
    text = text.strip().rstrip(".,;$* ").strip()
    while (unit := UNIT_BEHIND.search(text)) and unit.start() > 0:
        if AND.search(unit[0]) or re.search(r"thousand|million|hundred|dozen|half", unit[0]):
            break
        text = text[: unit.start()].strip()
    while text[:1] == "{" and "," not in text and closing(text, 1) == len(text) - 1:
        text = text[1:-1].strip()  # a group
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?![^(]*\))", "", text)


def squeezed(text: str) -> str:
    """One spelling of what differs in space and braces alone."""
    text = AND.sub(",", text)
    text = re.sub(r"([\^_])\{\s*(\w)\s*\}", r"\1\2", text)
    return re.sub(r"\s|\\text(?=\{)", "", text).rstrip(".")


def relations(text: str) -> list[str]:
    """What kind of statement a formula is; those of an order read from both sides are one."""
    turned = {">": "<", ">=": "<="}
    found = [RELATIONS[match[0].strip()] for match in RELATION.finditer(text)]
    return sorted(turned.get(kind, kind) for kind in found)


def is_readable(formula: str, timeout_s: float) -> bool:
    """Whether computer algebra can read a formula in plain LaTeX.

    Raises:
        Timeout: it was not found out in time.
    """
    return _ask(trimmed(formula), "", timeout_s) is not None


@lru_cache(maxsize=4096)
def _asked(expected: str, answer: str, timeout_s: float) -> str:
    """The reply of a worker: equal, other, unreadable, or late."""
    worker, left = _idle.get(), None
    try:
        worker = worker if worker is not None and worker.alive() else Worker()
        reply = worker.ask(expected, answer, timeout_s)
        if reply is not None:  # else, or where this call was interrupted, it is not used again
            left = worker
    finally:
        _idle.put(left)
    return reply or "late"


def _ask(expected: str, answer: str, timeout_s: float) -> bool | None:
    reply = _asked(expected, answer, timeout_s)
    if reply == "late":
        raise Timeout
    return None if reply == "unreadable" else reply == "equal"


class Worker:
    """A process that compares formulas; it ends where one takes too long."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, WORKER], stdin=pipe, stdout=pipe, text=True
        )
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(
                "the process that checks formulas did not start (its error is above);"
                " is math-verify installed? `pip install 'math-verify[antlr4_9_3]'`"
            )

    def ask(self, expected: str, answer: str, timeout_s: float) -> str | None:
        """None if the process ended instead of answering."""
        try:
            self.process.stdin.write(json.dumps([expected, answer, timeout_s]) + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            self.close()
            return None
        return reply.strip()

    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def _new_pool() -> None:
    """Places for a worker a core, each started when it is first needed and used last in, first out.

    A forked child starts its own: two that read one pipe would take each other's answers.
    """
    global _idle
    _idle = LifoQueue()
    for _ in range(min(os.cpu_count() or 1, 8)):
        _idle.put(None)


@atexit.register
def _close_pool() -> None:
    while not _idle.empty():
        worker = _idle.get()
        if worker is not None:
            worker.close()


_idle: "LifoQueue[Worker | None]"
_new_pool()
os.register_at_fork(after_in_child=_new_pool)
