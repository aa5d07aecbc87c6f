"""The hundred procedural tasks of reasoning-gym (https://github.com/open-thought/reasoning-gym,
Apache-2.0; arXiv:2505.24760) as an environment of one turn.

Deviation: several of its scorers hand the answer to ``eval``. An answer that is more than
arithmetic and literals never reaches those; it counts as no answer.
"""

import ast
import difflib
import functools
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.checks import require_seed, require_whole
from datamodules.environments.base import Options
from datamodules.environments.text import TextGenerationEnv
from datamodules.seeding import derive_seed
from datamodules.text.prompts import Prompt

HELD_OUT = 2**31
"""Between the seeds of both splits: the package draws problem i from ``seed + i``, so that seeds
close to each other would give the same problems."""
INSTRUCTIONS = {
    "tag": "Answer the question. Write your final answer, and it alone, between <answer> and"
    " </answer>.",
    "last_line": "Answer the question. The last line of your response must be the final answer, and"
    " it alone.",
}


class ReasoningGymEnv(TextGenerationEnv):
    """``env=reasoning_gym``: the reward is what the task's own ``score_answer`` gives, 0 to 1.

    Metrics: ``correct`` (the full score), ``answered`` (an answer was found) and ``scorer_errors``
    (the task's scorer raised on the answer, which therefore earned nothing).

    Args:
        tokenizer: of the policy. With a chat template the prompts are conversations.
        task: a task's name, or several for a mixture in equal parts.
        num_problems: to train on; problems that are held out too are left out of them.
        num_held_out: for evaluation.
        seed: of the problems.
        config: settings by task, such as ``{"leg_counting": {"max_animals": 4}}``.
        answer_format: where the answer stands: ``tag`` (the last ``<answer>...</answer>``) or
            ``last_line``.
        instruction: said before each question; default: as ``answer_format`` needs it.
        options: see ``Environment``.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: an unknown task or setting, or too few different problems.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        task: str | Sequence[str] = "leg_counting",
        *,
        num_problems: int = 1000,
        num_held_out: int = 200,
        seed: int = 0,
        config: Mapping[str, Mapping[str, Any]] | None = None,
        answer_format: str = "tag",
        instruction: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        if answer_format not in INSTRUCTIONS:
            raise ValueError(f"env.answer_format={answer_format!r}: use {sorted(INSTRUCTIONS)}")
        require_whole("env", 1, num_problems=num_problems)
        require_whole("env", 0, num_held_out=num_held_out)
        require_seed("env.seed", seed)
        tasks = [task] if isinstance(task, str) else list(task)
        if not tasks or (unknown := set(config or {}) - set(tasks)):
            what = f"env.config names {sorted(unknown)}" if tasks else "env.task is empty"
            raise ValueError(f"{what}: env.task={task} must name every task once")
        base = derive_seed(seed) % 2**30  # some tasks allow 32 bits
        held_out = _problems(tasks, num_held_out, base + HELD_OUT, config or {})
        known = {entry["question"] for _, entry in held_out}
        train = _problems(tasks, num_problems, base, config or {})
        train = [(dataset, entry) for dataset, entry in train if entry["question"] not in known]
        if not train:
            raise ValueError(
                f"env.task={task} has too few different problems: each of env.num_problems="
                f"{num_problems} is among the env.num_held_out={num_held_out}; lower that"
            )
        self._problems = [*train, *held_out]
        self._answer_format = answer_format
        said = instruction or INSTRUCTIONS[answer_format]
        prompts = [
            _prompt(said, number, entry, chat=tokenizer.chat_template is not None)
            for number, (_, entry) in enumerate(self._problems)
        ]
        super().__init__(tokenizer, prompts, **options)
        self.held_out = range(len(train), len(prompts))

    def score(self, episodes: Sequence["ReasoningGymEnv"]) -> list[tuple[float, dict]]:
        """By the tasks' own scorers."""
        numbers = [episode._prompt.metadata["problem"] for episode in episodes]
        return [
            self._score_episode(*self._problems[number], episode.response)
            for number, episode in zip(numbers, episodes, strict=True)
        ]

    def _score_episode(self, dataset: Any, entry: dict, response: str) -> tuple[float, dict]:
        answer = extract(response, self._answer_format)
        metrics = {"answered": float(answer is not None), "scorer_errors": 0.0}
        known = answer in (None, entry["answer"])
        if not known and _evaluates(type(dataset)) and not harmless(answer):
            answer = None
        try:
            reward = float(dataset.score_answer(answer, entry))
        except Exception:  # some scorers raise on answers that they cannot read
            reward, metrics["scorer_errors"] = 0.0, 1.0
        return reward, metrics | {"correct": float(reward >= 1.0)}


def extract(response: str, answer_format: str) -> str | None:
    """The final answer in a response, None if there is none."""
    if answer_format == "tag":
        for part in reversed(response.split("</answer>")[:-1]):  # a regex would be quadratic
            _, tag, answer = part.partition("<answer>")
            if tag:
                return answer.strip()
        return None
    lines = response.strip().splitlines()
    return lines[-1].strip() if lines else None


def harmless(answer: str) -> bool:
    """Whether ``eval`` and sympy's parser may be given a text: it is a literal, or arithmetic of
    bounded size, or no Python at all."""
    # sympy reads 5! as a factorial; what is no Python only because of that, is Python to it.
    text = re.sub(r"!(?!=)", "", answer.strip())
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return True
    except (ValueError, MemoryError, RecursionError):
        return False
    if text != answer.strip():
        return False
    if all(isinstance(node, _LITERALS) for node in ast.walk(tree)):
        return True
    return len(text) <= MAX_ARITHMETIC and _growth(tree) <= MAX_GROWTH


MAX_ARITHMETIC = 400
"""Characters of an arithmetic answer."""
MAX_GROWTH = 100
"""Product of the exponents upon each other."""
_LITERALS = (
    ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Load, ast.UnaryOp, ast.USub, ast.UAdd
)  # fmt: skip
_FUNCTIONS = {"sin", "cos", "tan", "asin", "acos", "atan", "log", "ln", "sqrt", "exp", "Abs"}


def _growth(node: ast.expr) -> float:
    """How far powers in an expression grow; infinite for what is no arithmetic."""
    match node:
        case ast.Name():
            return 1
        case ast.Constant(value=int() | float()):
            return 1
        case ast.UnaryOp():
            return _growth(node.operand)
        case ast.BinOp(left=ast.Name(id=name), op=ast.Pow()) if len(name) == 1 and name.islower():
            return _growth(node.right)  # a symbol's power is never multiplied out
        case ast.BinOp(op=ast.Pow()):
            return _growth(node.left) * _exponent(node.right)
        case ast.BinOp():
            return max(_growth(node.left), _growth(node.right))
        case ast.Call(func=ast.Name(id="exp"), args=[argument], keywords=[]):
            return _exponent(argument)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return _growth(argument)
    return math.inf


def _exponent(node: ast.expr) -> float:
    """The largest number in an exponent; infinite if powers stand in it."""
    numbers = [abs(n.value) for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return max([1, *numbers]) if _growth(node) == 1 else math.inf


@functools.cache
def _evaluates(kind: type) -> bool:
    """Whether a task's module hands text to an evaluator."""
    source = inspect.getsource(sys.modules[kind.__module__])
    return re.search(r"\b(eval|exec|parse_expr|sympify)\(", source) is not None


def _problems(
    tasks: Sequence[str], count: int, seed: int, config: Mapping[str, Mapping[str, Any]]
) -> list[tuple[Any, dict]]:
    """``count`` problems, the tasks in turn, each with the data set that scores it."""
    if count == 0:
        return []
    size = -(-count // len(tasks))
    datasets = [_dataset(task, size, seed, config.get(task, {})) for task in tasks]
    turns = (divmod(i, len(tasks)) for i in range(count))
    return [(datasets[which], datasets[which][i]) for i, which in turns]


def _dataset(task: str, size: int, seed: int, settings: Mapping[str, Any]) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError(
            f"env=reasoning_gym needs a package that is missing ({error}):"
            ' pip install "rlmodules[reasoning]"'
        ) from error
    if task not in (known := reasoning_gym.factory.DATASETS):
        close = difflib.get_close_matches(task, known, n=3) or sorted(known)
        raise ValueError(f"env.task={task!r} is no task of reasoning-gym; there are {close}")
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"env.config.{task}={dict(settings)}: {error}") from error


def _prompt(instruction: str, number: int, entry: Mapping[str, Any], *, chat: bool) -> Prompt:
    metadata = {"problem": number, "answer": entry["answer"]}
    question = entry["question"].strip()
    if not chat:
        return Prompt(f"{instruction}\n\n{question}\n\nAnswer:", metadata)
    messages = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": question},
    ]
    return Prompt(messages, metadata)
