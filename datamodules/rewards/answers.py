r"""Is the final answer of a response equal to the expected one?

Which answer counts: the last one that is *claimed* (``\boxed{..}``, ``#### ..``, ``Answer: ..``,
"the answer is .."), because who marks an answer commits to it; where none is, the last number or
formula of the text, because worked solutions end on their result. Exactly one value is compared:
a list of guesses earns no more than its last one, a claimed list is no number, and a sum still to
be done (``7 + 5``, ``8/2``) is no answer to itself. What is called incorrect is not claimed.

Expected numbers are compared exactly, as fractions and in this process. Units and currency do not
count; ``50%`` equals both 50 and 0.5. All other mathematics is left to ``math-verify`` in worker
processes that end themselves after ``timeout_s``, so that no text can hold up training.
"""

import atexit
import json
import os
import re
import subprocess
import sys
import warnings
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from queue import LifoQueue

LONGEST = 300
"""Characters of an answer; longer ones are none."""
WORKER = Path(__file__).with_name("answers_worker.py")

REWRITES = (  # how LaTeX and typography write what the regex of numbers reads, in this order
    (r"[\u2212\ufe63\uff0d]", "-"),
    (r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3})|\{,\}(?=\d{3})|(?<=\d)\\[,;!: ](?=\d{3})", ","),
    (r"[\u00a0\u2009\u202f]|\\[,;!: ()\[\]]|\$\$|\\left\b|\\right\b|\\displaystyle\b", " "),
    (r"\\([$%])", r"\1"),
    (r"\\(?:text|mathrm|textbf|mathbf)\s?\{([^{}]*)\}", r" \1"),
    (r"(?<=\d)(?=\\[dt]?frac)", " "),
    (r"\\[dt]?frac\s?\{(-?\d+)\}\s?\{(\d+)\}|\\[dt]?frac\s?(\d)\s?(\d)", r"\1\3/\2\4"),
    (r"\\times|\\cdot|·", "×"),
    (r"\^\s?\\circ|\^\{\\circ\}|°", ""),
    (r"(?<![\d)])\*\*|\*\*(?!\s?[\d(])", ""),  # bold, and not a power
    (r"(^|[=:(])(\s?)-\s(?=[\d.$])", r"\1\2-"),
)

NUMBER = re.compile(
    r"""(?<![\w^_{])(?<!\d[:.])
    (?P<sign>(?<![\d)%]\s)-)?(?:[$€£¥₹]\s?(?P<sign2>-)?)?
    (?:(?P<whole>\d+)\s(?=\d+/\d))?
    (?P<digits>\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\.)\.\d+)
    (?:[eE](?P<e>[-+]?\d{1,3})(?!\d)|\s?[×*x]\s?10\s?\^\s?\{?(?P<power>-?\d{1,3})(?!\d)\}?)?
    (?:\s?/\s?(?P<below>\d+(?![\d.])))?
    (?P<percent>\s?%|\s?percent\b)?""",
    re.VERBOSE,
)
CLAIM = re.compile(
    r"(?P<boxed>\\boxed\s?\{)|####|\banswer\b[^\n.:=?!]{0,60}?(?:\bis\b|[:=])(?:\s?(?:is\b|[:=]))*",
    re.I,
)
DENIED = re.compile(
    r"\b(?:incorrect|wrong)\s(?:final\s)?answer\b(?:[^\n.]|\.(?=\d))*"
    r"|\banswer\b[^\n.:=?!]{0,40}?\bis(?:\s+not\b|n't)(?:[^\n.]|\.(?=\d))*",
    re.I,
)
PART_OF_FORMULA = re.compile(r"\s?(?:[\\^_{]|[xyznπ]\b)|:\d|[eE][-+]?\d")
GOES_ON = re.compile(r"\s?(?:[-,;:+*/×÷.]|or\b|and\b|to\b){1,2}\s?-?[$€£¥₹]?\d")
OPERATOR_BEFORE = re.compile(r"[\d)%]\s?[-+*/×÷^]{1,2}\s?\(?$")
FORMULA = re.compile(  # bounded: a search to the end of the text from each opening is quadratic
    r"\$\$?([^$\s](?:[^$\n]{0,300}[^$\s])?)\$\$?(?!\d)|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]"
)
WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")


@dataclass(frozen=True)
class Number:
    """An exact value; 50% is 50 with ``percent``."""

    value: Fraction
    percent: bool

    def same(self, other: "Number") -> bool:
        """Equal; a percent sign may also be a unit that the other side leaves out."""
        if self.percent == other.percent or self.value == other.value:
            return self.value == other.value
        percent, plain = (self, other) if self.percent else (other, self)
        return percent.value / 100 == plain.value


def is_correct(response: str, expected: str, timeout_s: float = 2.0) -> bool:
    """Whether the answer that ``response`` gives is the expected one.

    Args:
        expected: a number in any usual notation, a formula in LaTeX, or words.
        timeout_s: seconds that ``math-verify`` may take where the answer is neither number nor
            words; after them the answer is wrong, and a warning shows it.
    """
    number = as_number(expected)
    if number is not None:
        given = stated_number(response)
        return given is not None and given.same(number)
    answer, expected = stated_formula(response), _bare(expected)
    if answer is None:
        return False
    if answer == expected or WORDS.fullmatch(expected):
        return answer.casefold() == expected.casefold()
    return formulas_equal(expected, answer, timeout_s)


def as_number(text: str) -> Number | None:
    """The number that the whole of ``text`` is; a full stop may follow it."""
    text = _plain(text[: LONGEST + 1]).strip().strip("$").removesuffix(".")
    match = NUMBER.fullmatch(text)
    return _number(match) if match else None


def stated_number(response: str) -> Number | None:
    """The number that ``response`` gives as its answer; None if that is no single number."""
    claim, text = _claim(response)
    if claim is not None:
        text = _plain(claim).rpartition("=")[2]
        match = NUMBER.search(text)
        if match is None or re.search(r"[+*/×÷^_\\{]|-\s?$", text[: match.start()]):
            return None
        if GOES_ON.match(text, match.end()):
            return None
    else:
        text = _plain(text)
        match = _last(NUMBER, text)
        if match is None or OPERATOR_BEFORE.search(text[max(match.start() - 8, 0) : match.start()]):
            return None
    return None if PART_OF_FORMULA.match(text, match.end()) else _number(match)


def stated_formula(response: str) -> str | None:
    """The formula or the words that ``response`` gives as its answer: of its last line at most."""
    claim, text = _claim(response)
    if claim is None:
        formula = _last(FORMULA, text)
        claim = next(filter(None, formula.groups())) if formula else text.split("\n")[-1]
    answer = _bare(claim)
    return answer if 0 < len(answer) <= LONGEST else None


def _claim(response: str) -> tuple[str | None, str]:
    """What the last claim says, if there is one, and the text without what is denied."""
    text = DENIED.sub(" ", response).strip()
    for match in reversed(list(CLAIM.finditer(text))):
        after = text[match.end() : match.end() + LONGEST]
        said = _braced(after) if match["boxed"] else re.split(r"\n|\.(?:\s|$)", after.lstrip())[0]
        if said and said.strip("*_ "):
            return said, text
    return None, text


def _last(pattern: re.Pattern, text: str) -> re.Match | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last[0] if last else None


def _braced(text: str) -> str | None:
    """``text`` up to the brace that closes; None if it does not."""
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[: match.start()]
    return None


def _plain(text: str) -> str:
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text


def _bare(text: str) -> str:
    """Without the signs around a formula."""
    text = text.strip().strip("$*").removesuffix(".").strip()
    return re.sub(r"^\\[(\[]|\\[)\]]$|^\\text\{([^{}]*)\}$", r"\1", text).strip()


def _number(match: re.Match) -> Number | None:
    """Exact value of a match; None for absurd lengths, and for a division that comes out even."""
    if match.end() - match.start() > LONGEST:
        return None
    value = Fraction(match["digits"].replace(",", "")) * Fraction(10) ** int(
        match["e"] or match["power"] or 0
    )
    if match["below"]:
        if int(match["below"]) == 0 or value % int(match["below"]) == 0:
            return None  # 8/2 is still to be worked out
        value = int(match["whole"] or 0) + value / int(match["below"])
    negative = bool(match["sign"]) != bool(match["sign2"])
    return Number(-value if negative else value, bool(match["percent"]))


@lru_cache(maxsize=4096)
def formulas_equal(expected: str, answer: str, timeout_s: float) -> bool:
    """Whether two formulas are equal by ``math-verify``, in a worker process."""
    worker, left = _idle.get(), None
    try:
        worker = worker if worker is not None and worker.alive() else _Worker()
        equal = worker.ask(expected, answer, timeout_s)
        if equal is not None:  # else, or where this call was interrupted, it is not used again
            left = worker
    finally:
        _idle.put(left)
    if equal is None:
        warnings.warn(
            f"the answer {answer!r} could not be compared with {expected!r} within"
            f" {timeout_s:g} seconds and is taken for wrong",
            stacklevel=3,
        )
    return bool(equal)


class _Worker:
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

    def ask(self, expected: str, answer: str, timeout_s: float) -> bool | None:
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
        return reply == "1\n"

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


_idle: "LifoQueue[_Worker | None]"
_new_pool()
os.register_at_fork(after_in_child=_new_pool)
