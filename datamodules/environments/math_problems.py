"""Arithmetic problems at a chosen difficulty: distinct, seeded, split into training and held out.

=====  ==========================================================  =========================
level  numbers and operations                                      example
=====  ==========================================================  =========================
1      ``+ -``, numbers to 20, one of them of one digit            ``13 - 5``
2      ``+ -``, numbers to 99                                      ``47 + 36``
3      ``+ - *``, numbers to 99; factors to 12                     ``7 * 12``
4      two operations of ``+ - *``, with parentheses; factors to 12  ``(8 + 5) * 3``
5      word problem of one operation, numbers to 20                 ``Mia has 7 apples. ...``
6      word problem of two operations, numbers to 50                ``A box holds 4 pens. ...``
=====  ==========================================================  =========================

All numbers and results are whole; only level 4 has negative results.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

PATIENCE = 3000
"""Draws in a row that bring nothing new, after which a level is taken for exhausted."""
MOST = 10_000
"""Problems of a level, held-out ones included; the simplest levels have fewer."""
NAMES = ("Mia", "Tom", "Ana", "Ben", "Lena", "Omar", "Zoe", "Raj", "Eva", "Sam")
THINGS = ("apples", "pens", "coins", "books", "cards", "shells", "stamps", "balls")


@dataclass(frozen=True)
class Problem:
    """A question and its answer."""

    question: str
    """An arithmetic expression, or a word problem that ends in a question mark."""
    answer: int
    key: str
    """Equal for problems that are the same but for the order of the operands of + and *."""


def generate(
    difficulty: int, num_problems: int | None, num_held_out: int, seed: int
) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems, all distinct; no ``key`` is in both.

    The held-out ones depend on difficulty, seed and their number alone.

    Args:
        num_problems: for training; None takes all that there are.

    Raises:
        ValueError: no such level, or it has not that many problems.
    """
    if difficulty not in LEVELS:
        raise ValueError(f"env.difficulty={difficulty}: the levels are 1 to {max(LEVELS)}")
    problems = _distinct(LEVELS[difficulty], random.Random(f"{seed} {difficulty}"))
    by_key: dict[str, list[Problem]] = {}
    for problem in problems:
        by_key.setdefault(problem.key, []).append(problem)
    held_out: list[Problem] = []
    while len(held_out) < num_held_out and by_key:
        # Two of a key are a sum in both orders; word problems have it under many names.
        held_out += by_key.pop(next(iter(by_key)))[: min(2, num_held_out - len(held_out))]
    train = [problem for problem in problems if problem.key in by_key][:num_problems]
    if len(train) < (num_problems or 1):
        raise ValueError(
            f"env.num_problems={num_problems}, env.num_held_out={num_held_out}: difficulty"
            f" {difficulty} leaves {len(train)} to train on beside {len(held_out)} held-out ones:"
            " lower them (num_problems=null takes all that there are) or raise env.difficulty"
        )
    return train, held_out


def _distinct(draw: Callable[[random.Random], Problem], rng: random.Random) -> list[Problem]:
    """All problems of a level, or the first ``MOST``, in random order."""
    found: dict[str, Problem] = {}
    idle = 0
    while len(found) < MOST and idle < PATIENCE:
        problem = draw(rng)
        idle = idle + 1 if problem.question in found else 0
        found.setdefault(problem.question, problem)
    return list(found.values())


def _operation(sign: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def _key(sign: str, left: int | str, right: int | str) -> str:
    """``left sign right`` in an order of its own where the order does not matter."""
    if sign != "-":
        left, right = sorted((left, right), key=str)
    return f"({left}{sign}{right})"


def _sums(largest: int, signs: str, one_digit: bool = False) -> Callable[[random.Random], Problem]:
    """``a sign b`` without negative results; factors are 2 to 12."""

    def draw(rng: random.Random) -> Problem:
        sign = rng.choice(signs)
        if sign == "*":
            left, right = rng.randint(2, 12), rng.randint(2, 12)
        else:
            left, right = rng.randint(1, largest), rng.randint(1, largest)
        if (sign == "-" and left < right) or (one_digit and min(left, right) > 9):
            return draw(rng)
        answer = _operation(sign, left, right)
        return Problem(f"{left} {sign} {right}", answer, _key(sign, left, right))

    return draw


def _chain(rng: random.Random) -> Problem:
    """``(a sign b) sign c`` or ``c sign (a sign b)``."""
    inner, outer = rng.choice("+-*"), rng.choice("+-*")
    a, b, c = (rng.randint(2, 12) for _ in range(3))
    value, key = _operation(inner, a, b), _key(inner, a, b)
    if rng.random() < 0.5:
        question = f"({a} {inner} {b}) {outer} {c}"
        return Problem(question, _operation(outer, value, c), _key(outer, key, c))
    question = f"{c} {outer} ({a} {inner} {b})"
    return Problem(question, _operation(outer, c, value), _key(outer, c, key))


def _story(largest: int, steps: int) -> Callable[[random.Random], Problem]:
    """A word problem of one or two operations; numbers and sums are at most ``largest``."""

    def draw(rng: random.Random) -> Problem:
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        if rng.random() < 0.5:
            have = rng.randint(2, largest // 2)
            text = f"{name} has {have} {thing}."
        else:
            boxes, each = rng.randint(2, 5), rng.randint(2, max(largest // 10, 3))
            have = boxes * each
            text = f"{name} has {boxes} boxes with {each} {thing} in each."
            if steps == 1:
                return _story_problem(text, f"How many {thing} does {name} have?", have)
        for _ in range(steps - text.count("boxes")):
            if rng.random() < 0.5 or have < 2:
                more = rng.randint(1, largest // 2)
                have, text = have + more, f"{text} {name} finds {more} more."
            else:
                less = rng.randint(1, have - 1)
                have, text = have - less, f"{text} {name} gives away {less}."
        return _story_problem(text, f"How many {thing} does {name} have now?", have)

    return draw


def _story_problem(text: str, question: str, answer: int) -> Problem:
    """The names and things of a story make no difference to its key, its numbers and verbs do."""
    words = [word for word in text.split() if word not in NAMES and word.strip(".") not in THINGS]
    return Problem(f"{text} {question}", answer, " ".join(words))


LEVELS: dict[int, Callable[[random.Random], Problem]] = {
    1: _sums(20, "+-", one_digit=True),
    2: _sums(99, "+-"),
    3: _sums(99, "+-*"),
    4: _chain,
    5: _story(20, steps=1),
    6: _story(50, steps=2),
}
