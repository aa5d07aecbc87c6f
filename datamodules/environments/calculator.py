"""Chains of arithmetic, with a calculator that the model may call."""

import ast
import math
import operator
import random
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.environments.tools import Scene, ToolEnv
from datamodules.verify import is_correct

MAX_EXPRESSION = 200
"""Characters."""
MAX_BITS = 256
"""Of any whole number on the way to a result."""

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_STEPS = {"add": operator.add, "subtract": operator.sub, "multiply by": operator.mul}
_INSTRUCTION = "Work it out with the calculator. Then answer with the result alone."


def evaluate(expression: str) -> int | float:
    """The value of an arithmetic expression: numbers, ``+ - * / // % **`` and parentheses.

    Raises:
        ValueError: it is something else, or too long; or a number on the way is too large or
            no real number.
        ZeroDivisionError: it divides by zero.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ValueError(f"the expression is longer than {MAX_EXPRESSION} characters")
    expression = expression.strip().translate(str.maketrans("×÷−", "*/-"))
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{expression!r} is no arithmetic expression") from error
    return _value(tree.body)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return _value(node.operand)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            left, right = _value(node.left), _value(node.right)
            if isinstance(node.op, ast.Pow) and left and abs(right) * _bits(left) > MAX_BITS:
                raise ValueError("the power is too large")  # before it is computed
            return _bounded(_OPERATORS[type(node.op)](left, right))
    raise ValueError(f"{ast.unparse(node)[:40]!r} is no arithmetic")


def _bits(value: int | float) -> float:
    return abs(math.log2(abs(value))) + 1


def _bounded(value: int | float | complex) -> int | float:
    if isinstance(value, complex) or abs(value) >= 2**MAX_BITS:
        raise ValueError("a number is too large, or no real number")
    return value


class CalculatorScene(Scene):
    """One chain: ``correct`` if the answer states its result."""

    def __init__(self, question: str, result: int) -> None:
        self.question, self.result = question, result
        self.messages = [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": question},
        ]

    def tools(self) -> Sequence[Callable[..., Any]]:
        return [calculator]

    def judge(self, answer: str) -> tuple[float, dict[str, float]]:
        correct = float(is_correct(answer, str(self.result)))
        return correct, {"correct": correct}


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: numbers, + - * / and parentheses, such as (12 + 5) * 3.
    """
    value = evaluate(expression)
    return str(value) if isinstance(value, int) else format(value, ".12g")


def chain(difficulty: int, generator: random.Random) -> CalculatorScene:
    """A start and ``difficulty`` steps: sums of two-digit numbers, products with 2 to 9."""
    value = generator.randint(10, 99)
    steps = [f"Start with {value}"]
    for _ in range(difficulty):
        name = generator.choice(list(_STEPS))
        operand = generator.randint(2, 9) if name == "multiply by" else generator.randint(10, 99)
        value = _STEPS[name](value, operand)
        steps.append(f"{name} {operand}")
    return CalculatorScene(f"{', '.join(steps)}. What is the result?", value)


class CalculatorEnv(ToolEnv):
    """``env=calculator``: chains of arithmetic, all different, the last of them held out.

    Args:
        tokenizer: of the policy.
        difficulty: steps of a chain, 1 at least.
        num_problems: to train on.
        num_held_out: for evaluation; none of them is trained on.
        seed: of the chains.
        tool_options: as of ``ToolEnv``.

    Raises:
        ValueError: an option is out of range, or there are not so many different chains.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        difficulty: int = 3,
        num_problems: int = 1000,
        num_held_out: int = 200,
        seed: int = 0,
        **tool_options: Any,
    ) -> None:
        if difficulty < 1:
            raise ValueError(f"env.difficulty={difficulty} must be at least 1 (steps of a chain)")
        scenes = distinct(
            lambda generator: chain(difficulty, generator), num_problems, num_held_out, seed
        )
        held_out = range(num_problems, len(scenes))
        super().__init__(tokenizer, scenes, held_out=held_out, **tool_options)


def distinct(
    make: Callable[[random.Random], Scene], num_problems: int, num_held_out: int, seed: int
) -> list[Scene]:
    """Scenes as ``make`` draws them, no two of them alike.

    Raises:
        ValueError: a count is out of range, or so many different ones are not found.
    """
    if num_problems < 1:
        raise ValueError(f"env.num_problems={num_problems} must be at least 1")
    if num_held_out < 0:
        raise ValueError(f"env.num_held_out={num_held_out} must not be negative")
    generator, wanted = random.Random(seed), num_problems + num_held_out
    scenes: dict[str, Scene] = {}
    for _ in range(20 * wanted):
        scene = make(generator)
        scenes.setdefault(repr(vars(scene)), scene)
        if len(scenes) == wanted:
            return list(scenes.values())
    raise ValueError(
        f"env.num_problems={num_problems} and env.num_held_out={num_held_out} are too many: only"
        f" {len(scenes)} different ones were found; ask for fewer, or raise env.difficulty"
    )
