r"""Statements of the same kind, compared part by part: lists, tuples, intervals, chains.

Lists and unions are without order, tuples are not; an inequality of one variable is an interval; a
name before a value (``x = 5``) counts where both sides have one. What is left goes to ``algebra``.
"""

import re

from datamodules.mathematics.algebra import Unreadable, equal, is_near, matched, read, rounds_to
from datamodules.mathematics.values import read_number

LEAST_DECIMALS = 6
"""Decimals that a rounded value of an irrational one needs, as in math-verify."""
NAME = (
    r"(?:\|?[A-Z]{2,4}\|?|(?:m\s?)?\\angle\s?[A-Z]+"
    r"|[A-Za-z](?:_\{\w+\}|'+)?(?:\([a-z]\))?|\\[a-z]+|\(\s?[a-z](?:\s?,\s?[a-z])+\s?\))"
)
ASSIGNED = re.compile(rf"\s*(?P<name>{NAME})\s*(?:=|\\in(?![a-z]))\s*(?P<value>[^=<>]+)$")
LISTED = re.compile(
    r"\\text\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|;|,(?:\s?and)?"
)
BASE = re.compile(r"\d\s?_\{")


def same(expected: str, answer: str) -> bool:
    """Whether two formulas are equal: lists part by part, formulas by computer algebra.

    Raises:
        Unreadable: the expected formula.
    """
    left, right = shape(expected), shape(answer)
    if (left is None) is not (right is None):  # x < 5 is (-oo, 5)
        left, right = left or as_interval(expected), right or as_interval(answer)
    if left is None:
        return same_formula(expected, answer) if right is None else _is_read(expected) and False
    kind, parts = left
    if right is None or right[0] != kind:
        return all(map(_is_read, parts)) and False
    if kind == "union" or (kind == "list" and not _is_by_name(parts, right[1])):
        return matched(parts, right[1], same)
    if len(parts) != len(right[1]):
        return all(map(_is_read, parts)) and False
    return all(map(same, parts, right[1]))


def _is_by_name(expected: list[str], answers: list[str]) -> bool:
    """Whether the values of several names stand beside values without: then their order counts."""
    ours, theirs = (
        [m and m["name"] for m in map(ASSIGNED.match, side)] for side in (expected, answers)
    )
    return (None in ours) is not (None in theirs) and len({*ours, *theirs} - {None}) > 1


def as_interval(text: str) -> tuple[str, list[str]] | None:
    """The interval of a variable that an inequality names; None if it is no such inequality."""
    sides = re.split(r"(<|>|\\leq(?![a-z])|\\geq(?![a-z]))", text)
    values, signs = [side.strip() for side in sides[::2]], sides[1::2]
    if any(sign in (">", "\\geq") for sign in signs):
        values, signs = (
            values[::-1],
            [{">": "<", "\\geq": "\\leq"}.get(s, ">") for s in signs[::-1]],
        )
    if ">" in signs or not 1 <= len(signs) <= 2:
        return None
    if len(signs) == 1:
        first = re.fullmatch(NAME, values[0]) is not None
        values = ["-\\infty", *values] if first else [*values, "\\infty"]
        signs = ["<", *signs] if first else [*signs, "<"]
    if not re.fullmatch(NAME, values[1]):
        return None
    kind = ("[" if signs[0] != "<" else "(") + ("]" if signs[1] != "<" else ")")
    return kind, [values[0], values[2]]


def shape(text: str) -> tuple[str, list[str]] | None:
    r"""Kind and parts of a list, a tuple, an interval or a union; None for a single formula.

    ``\{1, 2\}`` is a list like ``1, 2``: without order. Tuples and intervals are named by their
    brackets.
    """
    text = text.strip()
    if assigned := ASSIGNED.match(text):
        inner = shape(assigned["value"])
        if inner is not None and inner[0] != "list":
            return inner
    if text.count("\\pm") == 1:
        return "list", [text.replace("\\pm", sign) for sign in "+-"]
    for kind, separator in (("union", re.compile(r"\\cup(?![a-z])")), ("list", LISTED)):
        parts = _split(text, separator)
        if len(parts) > 1:
            return kind, parts
    opened = re.match(r"\\?[(\[{]|\\langle ", text)
    if opened and _closes_at_end(text):
        inner = re.sub(r"\\?[)\]}]$|\\rangle\s?$", "", text[opened.end() :])
        parts = _split(inner, LISTED)
        if opened[0] in ("\\{", "{"):
            return "list", parts
        if len(parts) > 1 or (opened[0] == "[" and not inner.startswith("\\begin")):
            return opened[0] + text[-1], parts
    return None


def _split(text: str, separator: re.Pattern) -> list[str]:
    """``text`` at each separator outside of brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"[(\[{{]|[)\]}}]|{separator.pattern}", text):
        if match[0] in ("(", "[", "{"):
            depth += 1
        elif match[0] in (")", "]", "}"):
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return [part for part in parts if part] if len(parts) > 1 else parts


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens a text closes at its end."""
    depth = 0
    for match in re.finditer(r"[(\[{]|[)\]}]", text):
        depth += 1 if match[0] in "([{" else -1
        if depth == 0:
            return match.end() == len(text)
    return False


def same_chain(expected: str, sides: list[str]) -> bool:
    """Whether one side of ``a = b \\approx c`` is the expected one, and all are equal or near."""
    if re.fullmatch(NAME, sides[0]):
        sides = sides[1:]
    elif len(sides) == 2 and re.fullmatch(NAME, sides[1]):
        sides = sides[:1]
    right = [side for side in sides if same_formula(expected, side)]
    return bool(right) and all(side in right or is_near(expected, side) for side in sides)


def same_formula(expected: str, answer: str) -> bool:
    sides = [side.strip() for side in re.split(r"(?<![<>!:])=|\\approx(?![a-z])", answer)]
    if len(sides) > 1 and not _is_relation(expected) and not re.search(r"[<>,]", answer):
        return same_chain(expected, sides)
    left, right = ASSIGNED.match(expected), ASSIGNED.match(answer)
    if not left and not _is_relation(answer) and (value := _value_of_name(expected)):
        return same_formula(value, answer)
    if left and right:
        named = re.sub(r"\s", "", left["name"]) == re.sub(r"\s", "", right["name"])
        if named:
            return same_formula(left["value"], right["value"])
    elif (left or right) and not _is_relation(answer if left else expected):
        return same_formula(
            left["value"] if left else expected, right["value"] if right else answer
        )
    numbers = read_number(expected), read_number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0].same(numbers[1])
    if BASE.search(expected) or BASE.search(answer):
        return re.sub(r"[\s{}]", "", expected) == re.sub(r"[\s{}]", "", answer)
    gold = read(expected)
    try:
        given = read(answer)
    except Unreadable:
        return False
    decimals = re.fullmatch(r"[-+]?\s?\d*\.(\d+)", answer.strip())
    if decimals and len(decimals[1]) >= LEAST_DECIMALS:
        return equal(gold, given) or rounds_to(gold, given, len(decimals[1]))
    return equal(gold, given)


def _value_of_name(text: str) -> str | None:
    """The value that an equation gives an expression without numbers: 5 in ``|AB| = 5``."""
    sides = text.split("=")
    if len(sides) != 2 or re.search(r"[<>]", text):
        return None
    of = re.sub(r"_\{\w*\}", "", sides[0])
    named = re.search(r"[A-Za-z]", of) and not re.search(r"\d", of)
    return sides[1] if named and not re.search(r"(?<![\\A-Za-z])[A-Za-z]", sides[1]) else None


def _is_relation(text: str) -> bool:
    return re.search(r"[=<>]|\\(?:leq|geq|neq)(?![a-z])", text) is not None


def _is_read(formula: str) -> bool:
    read(formula)
    return True
