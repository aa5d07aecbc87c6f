"""Formulas of plain LaTeX as objects of sympy, and whether two are equal.

They are read by math-verify's parser (Kydlicek and Gandenberger, 2025; ``latex2sympy2``), whole or
not at all. Where math-verify compares with a tolerance (1/2^98 is 1/2^99 to it), we ask for
equality: of exact values, or to 200 digits at several points of the variables.

Only ``worker`` may call this: its texts can cost any time and memory.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

DIGITS, MORE_DIGITS = 40, 200
"""Precision of a first look, and of the verdict."""
POINTS = (("0.3719", 0.61803), ("1.7321", 0.41421), ("-0.6180", 0.73205), ("-2.2361", 0.57721))
"""Values of the first variable, and what each further one adds to it."""
FUNCTION = re.compile(
    r"(?<![\\A-Za-z])(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|pi|theta"
    r"|alpha|beta|infty)(?![A-Za-z])"
)
MIXED = re.compile(r"(?<![\d.}])(\d+)\s?\\frac\{\s?(\d+)\s?\}\{\s?(\d+)\s?\}")


class Unreadable(ValueError):
    """A text that is no formula."""


@lru_cache(maxsize=512)  # an expected answer is compared with those of its whole group
def read(formula: str) -> Any:
    """A formula of plain LaTeX for sympy.

    Raises:
        Unreadable: it is none, or not the whole text is.
    """
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    text = re.sub(r"(?<=[\w)}])\*\*\s?(-?\w+|\([^()]*\))", r"^{\1}", formula)
    text = re.sub(r"(?<![\\A-Za-z])sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = FUNCTION.sub(r"\\\1 ", text.replace("*", r" \cdot "))
    text = re.sub(r"\\operatorname\s?\{(\w+)\}", r"\\\1 ", text)
    text = MIXED.sub(_improper, text)
    text = re.sub(r"\\vert(?![a-z])\s?", "|", text)
    text = re.sub(r"(\d*)\.(\d+)", _exact, text)
    if not text.strip() or re.search(r"\d\s+\d", text):
        raise Unreadable(formula)
    try:
        return latex2sympy(
            text.strip(),
            is_real=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception as error:  # the parser's own errors, and sympy's
        raise Unreadable(formula) from error


def _improper(match: re.Match) -> str:
    """A mixed number as one fraction."""
    whole, above, below = (int(match[i]) for i in (1, 2, 3))
    if not above < below:
        return match[0]
    return f"\\frac{{{whole * below + above}}}{{{below}}}"


def _exact(match: re.Match) -> str:
    """A decimal as a fraction: sympy would round it."""
    whole, decimals = match[1], match[2]
    return f"\\frac{{{int((whole or '0') + decimals)}}}{{{10 ** len(decimals)}}}"


def equal(left: Any, right: Any) -> bool:
    """Whether two objects of sympy are equal."""
    import sympy
    from sympy.core.relational import Relational

    sets = (sympy.FiniteSet, sympy.Tuple)
    if isinstance(left, sympy.MatrixBase) or isinstance(right, sympy.MatrixBase):
        if getattr(left, "shape", None) != getattr(right, "shape", 0):
            return False
        return all(equal(*pair) for pair in zip(left.flat(), right.flat(), strict=True))
    if isinstance(left, sympy.And) or isinstance(right, sympy.And):
        return matched(_relations(left), _relations(right), equal)
    if isinstance(left, Relational) and isinstance(right, Relational):
        return _same_relation(left, right)
    if isinstance(left, sets) and isinstance(right, sets):  # as of nested plus-minus signs
        return matched(list(left.args), list(right.args), equal)
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return _same_expression(left, right)
    return bool(left == right)


def matched(expected: list[Any], answers: list[Any], equal: Callable[..., bool]) -> bool:
    """Whether each part has an equal one on the other side, in any order."""
    pairs = [[equal(part, answer) for answer in answers] for part in expected]
    return all(map(any, pairs)) and all(map(any, zip(*pairs, strict=True)))


def _relations(statement: Any) -> list[Any]:
    import sympy

    return list(statement.args) if isinstance(statement, sympy.And) else [statement]


def _same_relation(left: Any, right: Any) -> bool:
    """Whether two equations or inequalities are one times a number: its sign turns an order."""
    import sympy

    order = isinstance(left, sympy.core.relational._Inequality)
    if type(left) is not type(right) and type(left) is not type(right.reversed):
        return False
    if order and type(left) is not type(right):
        right = right.reversed
    ours, theirs = left.lhs - left.rhs, right.lhs - right.rhs
    if _same_expression(ours, theirs) or (not order and _same_expression(ours, -theirs)):
        return True
    ratio = sympy.cancel(sympy.expand(ours) / sympy.expand(theirs))
    return not ratio.free_symbols and bool(ratio.is_finite) and (not order or ratio > 0)


def _same_expression(left: Any, right: Any) -> bool:
    import sympy

    if left == right:
        return True
    i = [symbol for symbol in left.free_symbols | right.free_symbols if symbol.name == "i"]
    left, right = (side.subs(dict.fromkeys(i, sympy.I)) for side in (left, right))
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    compared = 0
    for start, step in POINTS[:1] if not symbols else POINTS:
        values = {
            symbol: sympy.Rational(start) + sympy.Rational(str(step)) * place
            for place, symbol in enumerate(symbols)
        }
        close = _close_at(left, right, values, positive=not start.startswith("-"))
        if close is False:
            return False
        compared += close is True
    if not compared:
        return bool(sympy.simplify(left - right) == 0)
    if not symbols:
        difference = (left - right).doit()
        if difference.is_Rational:
            return bool(difference == 0)
    return True


def _close_at(left: Any, right: Any, values: dict[Any, Any], positive: bool) -> bool | None:
    """Whether two expressions have the same value at a point; None where that says nothing."""
    for digits in (DIGITS, MORE_DIGITS):
        ours, theirs = (_value(side, values, digits) for side in (left, right))
        if ours is None or theirs is None:
            return None
        if not positive and not (ours.is_real and theirs.is_real):
            return None
        size = max(abs(ours), abs(theirs))
        if size != 0 and not abs(ours - theirs) < size * 10 ** (10 - digits):
            return False
    return True


def _value(expression: Any, values: dict[Any, Any], digits: int) -> Any:
    value = expression.subs(values).evalf(digits)
    return value if value.is_number and value.is_finite and not value.free_symbols else None


def rounds_to(exact: Any, decimal: Any, decimals: int) -> bool:
    value = _value(exact, {}, DIGITS)
    if value is None or not value.is_real or abs(value) < 1:
        return False
    return bool(abs(value - decimal) <= 0.5 * 10.0**-decimals)


def is_near(exact: str, rounded: str) -> bool:
    """Whether a decimal number is a formula's value, rounded."""
    decimals = re.fullmatch(r"[-+]?\s?\d+(?:\.(\d+))?", rounded.strip())
    value = _value(read(exact), {}, DIGITS)
    if decimals is None or value is None or not value.is_real:
        return False
    return bool(abs(value - read(rounded)) < 10.0 ** -len(decimals[1] or ""))
