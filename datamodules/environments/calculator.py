"""Chains of arithmetic, with a calculator that the model may call."""

import ast
import math
import operator
import random
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.checks import require_seed, require_whole
from datamodules.environments.toolbox import as_call
from datamodules.environments.tools import Scene, ToolEnv
from datamodules.rewards.answers import is_correct

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
_INSTRUCTION = "Use the calculator for every question. Then answer with its result."


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

    def __init__(self, expression: str) -> None:
        self.expression, self.result = expression, evaluate(expression)
        self.messages = [
            {"role": "system", "content": _INSTRUCTION},
            {"role": "user", "content": f"What is {expression}?"},
        ]

    def tools(self) -> Sequence[Callable[..., Any]]:
        return [calculator]

    def judge(self, answer: str) -> tuple[float, dict[str, float]]:
        correct = float(is_correct(answer, str(self.result)))
        return correct, {"correct": correct}

    def solution(self) -> Sequence[str]:
        return [as_call("calculator", expression=self.expression), f"The answer is {self.result}."]


def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression.

    Args:
        expression: such as (12 + 5) * 3
    """
    value = evaluate(expression)
    return str(value) if isinstance(value, int) else format(value, ".12g")


def chain(difficulty: int, generator: random.Random) -> CalculatorScene:
    """A number and ``difficulty`` steps: sums with two-digit numbers, products with 2 to 9."""
    expression = str(generator.randint(10, 99))
    for step in range(difficulty):
        sign = generator.choice("+-*")
        if sign == "*" and step:
            expression = f"({expression})"
        operand = generator.randint(2, 9) if sign == "*" else generator.randint(10, 99)
        expression = f"{expression} {sign} {operand}"
    return CalculatorScene(expression)


class CalculatorEnv(ToolEnv):
    """``env=calculator``: chains of arithmetic, all different, the last of them held out.

    Args:
        tokenizer: of the policy.
        difficulty: steps of a chain, 1 to 20.
        demonstrations: other chains that are shown solved before each one.
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
        difficulty: int = 2,
        demonstrations: int = 3,
        num_problems: int = 1000,
        num_held_out: int = 200,
        seed: int = 0,
        **tool_options: Any,
    ) -> None:
        if not 1 <= difficulty <= 20:
            raise ValueError(f"env.difficulty={difficulty} must be 1 to 20 (steps of a chain)")
        scenes = distinct(
            lambda generator: chain(difficulty, generator),
            num_problems,
            num_held_out,
            demonstrations,
            seed,
        )
        super().__init__(tokenizer, **scenes, **tool_options)


def distinct(
    make: Callable[[random.Random], Scene],
    num_problems: int,
    num_held_out: int,
    demonstrations: int,
    seed: int,
) -> dict[str, Any]:
    """Scenes as ``make`` draws them, no two of them alike: arguments of ``ToolEnv``.

    Raises:
        ValueError: a count is out of range, or so many different ones are not found.
    """
    require_whole("env", 1, num_problems=num_problems)
    require_whole("env", 0, num_held_out=num_held_out, demonstrations=demonstrations)
    require_seed("env.seed", seed)
    generator, size = random.Random(seed), num_problems + num_held_out
    found: dict[str, Scene] = {}
    for _ in range(20 * (size + demonstrations)):
        scene = make(generator)
        found.setdefault(repr(vars(scene)), scene)
        if len(found) == size + demonstrations:
            scenes = list(found.values())
            held_out = range(num_problems, size)
            return {"scenes": scenes[:size], "examples": scenes[size:], "held_out": held_out}
    raise ValueError(
        f"env.num_problems={num_problems} and env.num_held_out={num_held_out} are too many: only"
        f" {len(found)} different ones were found; ask for fewer, or raise env.difficulty"
    )
