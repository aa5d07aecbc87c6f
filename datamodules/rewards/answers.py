r"""Is the final answer of a response equal to the expected one?

A response is paid if the whole of what it claims denotes the expected answer and nothing else:

1. ``mathematics.claims`` finds the words that it claims;
2. the expected answer is a number, a label (a letter of multiple choice, a time, words) or a
   formula, and the claim is read as the same;
3. numbers are compared exactly, as fractions (``mathematics.values``, ``residue``), labels by
   ``mathematics.labels``, formulas by computer algebra (``mathematics.formulas``) in worker
   processes that end themselves after ``timeout_s``, so that no text can hold up training.

Units and currency do not count; ``50%`` equals both 50 and 0.5. A sum still to be done (``7 + 5``,
``8/2``) is no answer to itself.
"""

import os
import re
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import count

from datamodules.mathematics import formulas
from datamodules.mathematics.claims import BOX, Claim, final_claim
from datamodules.mathematics.labels import Reading, last_line, read_label
from datamodules.mathematics.residue import (
    CHANGED_BEFORE,
    CHANGED_BEHIND,
    DENIED_BEFORE,
    EXPLAINS,
    UNIT,
    is_name,
    one_number,
    spoken,
    stated_numbers,
)
from datamodules.mathematics.typography import Unreadable, plain_characters, plain_latex
from datamodules.mathematics.values import LONGEST, Number, read_number

SHOWN = 10
"""Answers that could not be judged of which a warning tells."""
_told: set[str] = set()

IN_DOLLARS = re.compile(r"\$\$?([^$\n]{1,300}?)\$\$?(?!\d)|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]")
LEADING_PROSE = re.compile(
    r"^(?:\s*(?!(?:sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|arc\w+)\b)[A-Za-z']{2,}[\s:,]+)+"
)
CLOSING_UNIT = re.compile(rf"\s(?:{UNIT}|[A-Za-z]{{4,}})(?:\s[A-Za-z]{{2,}})*\s*\.?$")
CLOSING_PROSE = re.compile(rf"\s*[,;]?\s{EXPLAINS.pattern}", re.I)
GROUPED = re.compile(r"(?<![\d.,])(?<![\d.,] )\d{1,3}(?: \d{3})+(?![\d.,]| \d)")


def is_correct(response: str, expected: str, timeout_s: float = 2.0) -> bool:
    """Whether the answer that ``response`` gives is the expected one.

    Args:
        expected: a number in any usual notation, a letter of multiple choice, a time, words, or a
            formula in LaTeX.
        timeout_s: seconds that computer algebra may take where the answer is a formula; after
            them the answer is wrong, and a warning shows it. An expected formula that cannot be
            read is warned of too.
    """
    claim = final_claim(response)
    if claim is None:
        return False
    gold = read_expected(expected)
    if isinstance(gold, Number):
        return any(number.same(gold) for number in claimed_numbers(claim))
    if not isinstance(gold, str):
        said = _readable(last_line(claim))
        return said is not None and gold.stated_by(said, claim.form)
    said = claimed_formula(claim)
    if said is None:
        return False
    try:
        equal = formulas.formulas_equal(gold, said, timeout_s)
    except formulas.Timeout:
        _warn(
            f"{gold}\n{said}",
            f"the answer {said!r} could not be compared with {gold!r} within {timeout_s:g} seconds",
        )
        return False
    if equal is None:
        _warn(
            expected,
            f"the expected answer {expected!r} cannot be read, so no formula equals it: {said!r}",
        )
    return bool(equal)


def _warn(about: str, said: str) -> None:
    """Once about each, and about ``SHOWN`` of them: a data set may be full of them."""
    if about in _told or len(_told) > SHOWN:
        return
    _told.add(about)
    more = "" if len(_told) <= SHOWN else " (further such answers are not shown)"
    warnings.warn(f"{said} and is taken for wrong{more}", stacklevel=3)


def as_number(text: str) -> Number | None:
    """The number that the whole of ``text`` is; a full stop may follow it."""
    readable = _readable(text)
    if readable is None:
        return None
    return read_number(_grouped(spoken(readable)).strip().removesuffix("."))


def read_expected(expected: str) -> Number | Reading | str:
    """An expected answer as a number, a label, or else a formula in plain LaTeX."""
    if BOX.search(expected) and (claim := final_claim(expected)) and claim.form == "boxed":
        expected = claim.text
    text = _readable(expected)
    if text is None:
        return expected
    name = text.partition("=")[0].strip() if "=" in text else ""
    named = is_name(name) or not re.search(r"[A-Za-z]", name)
    numbers = stated_numbers(_grouped(text), formal=True) if named else []
    return numbers[-1] if numbers else read_label(text) or text


def require_readable(answers: Iterable[tuple[str, str]], timeout_s: float = 20.0) -> None:
    """Refuse expected answers that no response could be compared with.

    Args:
        answers: where each stands, for the message, and the answer.
        timeout_s: seconds to read one formula.

    Raises:
        ValueError: one is neither number, letter, time, words nor a formula that can be read.
    """
    read = {where: read_expected(expected) for where, expected in answers}
    unknown = [(where, gold) for where, gold in read.items() if isinstance(gold, str)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        known = threads.map(lambda found: _is_readable(found[1], timeout_s), unknown)
        for (where, gold), is_known in zip(unknown, known, strict=True):
            if not is_known:
                raise ValueError(
                    f"{where}: the expected answer {gold[:LONGEST]!r} cannot be read as a number, a"
                    " letter, a time, words or a formula, so no response could be right: write it"
                    " in LaTeX, or leave the row out"
                )


def _is_readable(gold: str, timeout_s: float) -> bool:
    if _readable(gold) is None:
        return False
    try:
        return formulas.is_readable(gold, timeout_s)
    except formulas.Timeout:
        return False


def claimed_numbers(claim: Claim) -> list[Number]:
    """The number that a claim states; two where one is the other, rounded; else none."""
    text = _readable(claim.text if claim.form != "last" else _last_value(claim.text))
    if text is None:
        return []
    if claim.form != "last":
        return stated_numbers(_grouped(text), formal=claim.form == "boxed")
    number = as_number(claim.text) or one_number(spoken(text), formal=False, alone=False)
    return [number] if number else []


def _last_value(text: str) -> str:
    """The last line with a digit, or the end of it."""
    lines = (line for line in reversed(text.splitlines()) if re.search(r"\d", line))
    return next(lines, "")[-LONGEST:]


def claimed_formula(claim: Claim) -> str | None:
    """The formula that a claim states, in plain LaTeX: of its last line at most.

    Of formulas within a sentence, the one that the sentence states: where they stand as numbers
    would, the rules for numbers tell which (see ``residue``).
    """
    text = last_line(claim)
    if claim.form != "boxed":
        spans: dict[str, str] = {}
        names = count(7001)
        marked = IN_DOLLARS.sub(
            lambda m: spans.setdefault(next(filter(None, m.groups())), f" {next(names)} "), text
        )
        if spans:
            formulas_of = {Fraction(name): formula for formula, name in spans.items()}
            told = claimed_numbers(Claim(marked, claim.form))
            text = formulas_of.get(told[-1].value) if len(told) == 1 else text.replace("$", " ")
        else:
            text = _formula_of_sentence(text)
    return _readable(text) if text and text.strip() else None


def _formula_of_sentence(text: str) -> str | None:
    """What a sentence without marked formulas says, without its words; None if they deny it."""
    text = CLOSING_PROSE.split(text)[0]
    lead = LEADING_PROSE.match(text)
    if lead and (DENIED_BEFORE.search(lead[0]) or CHANGED_BEFORE.search(lead[0])):
        return None
    text = text[lead.end() :] if lead else text
    unit = CLOSING_UNIT.search(text)
    return text[: unit.start()] if unit and not CHANGED_BEHIND.search(unit[0]) else text


def _readable(text: str) -> str | None:
    """``text`` in plain LaTeX; None if it is longer than answers are, or broken."""
    if len(text) > LONGEST:
        return None
    try:
        return plain_latex(plain_characters(text))
    except Unreadable:
        return None


def _grouped(text: str) -> str:
    """Digits in groups of three, set apart by spaces, as one number."""
    return GROUPED.sub(lambda match: match[0].replace(" ", ""), text)
