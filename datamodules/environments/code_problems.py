"""Programming problems: read from files of three kinds of rows, and put into words.

- this project's own: ``name``, ``instruction``, ``entry_point``, ``visible_tests`` (shown in the
  prompt), ``hidden_tests`` (run for the reward).
- HumanEval (Chen et al. 2021, arXiv:2107.03374): ``task_id``, ``prompt`` (code that ends in a
  function's head), ``test`` (a function ``check(candidate)``), ``entry_point``.
- MBPP (Austin et al. 2021, arXiv:2108.07732): ``task_id``, ``text`` or ``prompt``, ``test_list``,
  ``test_setup_code`` or ``test_imports``. The first test is shown, all are run.
"""

import ast
import builtins
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datamodules.text.tables import read_rows

FENCE = re.compile(  # each repetition ends in one place only: to try others would be quadratic
    r"^[ \t]*```[ \t]*(?![ \t])(\w*)(?!\w)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)",
    re.DOTALL | re.MULTILINE,
)
OPENING = "```python\n"
ANSWER = "<answer>"
SEED = "import random\nrandom.seed(0)\n"
"""Tests that draw random values draw the same ones for every answer."""
# What Python remarks on a model's code while it is parsed is of no use to the user.
for category in (SyntaxWarning, DeprecationWarning):
    warnings.filterwarnings("ignore", category=category, module=re.escape(ANSWER))


@dataclass(frozen=True)
class CodeProblem:
    """A program to write, and the tests that it has to pass."""

    name: str
    instruction: str
    """What to do, in words; empty where ``header`` says it."""
    tests: tuple[str, ...]
    """Statements that raise AssertionError at a wrong answer; the reward counts these."""
    visible: tuple[str, ...] = ()
    """Tests that the prompt shows."""
    setup: str = ""
    """Code that the tests need besides the answer."""
    header: str = ""
    """Code to complete: imports, helpers and a function's head. Empty: the answer is all code."""
    completes: str = ""
    """The function that ``header`` ends in."""
    calls: Mapping[str, str] = field(default_factory=dict)
    """Name in the tests -> the answer's function that it stands for."""

    def request(self) -> str:
        """The problem in words."""
        last = f"Answer with Python code in one {OPENING.strip()} block."
        if self.header:
            code = f"{OPENING}{self.header.rstrip()}\n```"
            return f"Complete this function, and write it out as a whole.\n{code}\n{last}"
        tests = "\n".join(self.visible)
        shown = f"\nIt must pass tests like these:\n{OPENING}{tests}\n```" if tests else ""
        return f"{self.instruction.strip()}{shown}\n{last}"

    def opening(self) -> str:
        """The text that a model without a chat template goes on from."""
        return self.header or f"{self.request()}\n\n{OPENING}"

    def program(self, response: str, *, chat: bool) -> tuple[str, int]:
        """The whole program of a response, and how many of its first lines are not the answer's.

        An empty text if the response holds no code.
        """
        code = extract_code(response if chat or self.header else OPENING + response)
        if not self.header or not code.strip():
            return code, 0
        tree = parse(code)
        if tree is not None and self.completes in _defined(tree.body):
            before = _before(self.header, self.completes)
            return before + code, before.count("\n")
        program = self.header + code
        if same_code(program, self.header):  # remarks alone
            return "", 0
        return program, self.header.count("\n")


def extract_code(text: str) -> str:
    """The last ```` ```python ```` block, else the last block of any kind, else the text itself.

    A block that is never closed reaches to the end.
    """
    blocks = [(language.lower(), code) for language, code in FENCE.findall(text)]
    python = [code for language, code in blocks if language in ("python", "python3", "py")]
    return (python or [code for _, code in blocks] or [text])[-1]


def parse(code: str) -> ast.Module | None:
    """Its syntax tree; None if it is no Python, or nested too deeply for Python's own parser."""
    try:
        return ast.parse(code, ANSWER)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def same_code(left: str, right: str) -> bool:
    """Whether two programs differ in comments and layout only, as far as Python can tell."""
    trees = parse(left), parse(right)
    try:
        return None not in trees and ast.dump(trees[0]) == ast.dump(trees[1])
    except (RecursionError, MemoryError):  # its parser goes deeper than its printer
        return False


def load_problems(
    path: str, option: str = "env.path", *, split: str | None = None, name: str | None = None
) -> list[CodeProblem]:
    """Read a file of problems (see ``read_rows`` for its formats).

    Rows whose tests hand objects of their own classes to the answer are left out with a warning:
    only plain data can cross into the sandbox.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row of no known kind, without tests, or with tests that are no Python.
    """
    problems = []
    for where, row in read_rows(path, split, option=option, name=name):
        problem = _read(where, row)
        if _defines_classes(problem.setup):
            warnings.warn(
                f"{where}: left out, its tests hand objects of their own classes to the answer",
                stacklevel=2,
            )
        else:
            problems.append(problem)
    if not problems:
        raise ValueError(f"{option}={path!r} holds no problems")
    return problems


def _read(where: str, row: Any) -> CodeProblem:
    given = set(row) if isinstance(row, Mapping) else set()
    for needed, read in KINDS:
        if needed <= given:
            try:
                problem = read(row)
            except (SyntaxError, ValueError, KeyError, TypeError, AttributeError) as error:
                detail = f"{type(error).__name__}: {error}"
                raise ValueError(f"{where}: this problem cannot be read ({detail})") from error
            if not problem.tests or not problem.calls:
                raise ValueError(f"{where}: no test of this problem calls the answer")
            return problem
    kinds = "; or ".join(", ".join(sorted(needed)) for needed, _ in KINDS)
    raise ValueError(f"{where}: the columns {sorted(given)} are not of a problem: give {kinds}")


def _own(row: Mapping[str, Any]) -> CodeProblem:
    entry = row["entry_point"]
    shown = tuple(row["visible_tests"])
    tests = _tests("\n".join(row["hidden_tests"]), {entry})
    return CodeProblem(row["name"], row["instruction"], tests, shown, calls={entry: entry})


def _human_eval(row: Mapping[str, Any]) -> CodeProblem:
    module = ast.parse(row["test"])
    [check] = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    [candidate] = [argument.arg for argument in check.args.args]
    entry = row["entry_point"]
    others = ast.unparse([n for n in module.body if n is not check])
    # The head as it was given: an answer cannot replace the helpers that its tests rely on.
    seed = SEED if "random" in row["test"] else ""
    setup = f"{row['prompt']}\n{others}\n{seed}"
    ast.parse(setup)
    return CodeProblem(
        name=str(row["task_id"]),
        instruction="",
        tests=_tests(ast.unparse(check.body), {candidate, entry}),
        setup=setup,
        header=row["prompt"],
        completes=entry,
        calls={candidate: entry, entry: entry},
    )


def _mbpp(row: Mapping[str, Any]) -> CodeProblem:
    tests = row["test_list"]
    setup = "\n".join([row.get("test_setup_code") or "", *(row.get("test_imports") or ())])
    free = _free_names("\n".join(tests)) - _defined(ast.parse(setup).body)
    modules = free & sys.stdlib_module_names
    imports = "".join(f"import {name}\n" for name in sorted(modules))
    return CodeProblem(
        name=f"MBPP/{row['task_id']}",
        instruction=row.get("text") or row["prompt"],
        tests=_tests("\n".join(tests), free - modules),
        visible=tuple(tests[:1]),
        setup=imports + setup,
        calls={name: name for name in sorted(free - modules)},
    )


KINDS: tuple[tuple[set[str], Callable[[Mapping[str, Any]], CodeProblem]], ...] = (
    ({"name", "instruction", "entry_point", "visible_tests", "hidden_tests"}, _own),
    ({"task_id", "prompt", "test", "entry_point"}, _human_eval),
    ({"task_id", "test_list"}, _mbpp),
)


def _tests(source: str, names: set[str]) -> tuple[str, ...]:
    """One text a test: each statement that asserts something of ``names``, with those before it.

    (HumanEval's checks hold ``assert True`` as well, which would be passed by any answer.)
    """
    tests, before = [], []
    for statement in ast.parse(source).body:
        nodes = list(ast.walk(statement))
        before.append(ast.unparse(statement))
        called = any(isinstance(n, ast.Name) and n.id in names for n in nodes)
        if called and any(isinstance(n, ast.Assert) for n in nodes):
            tests.append("\n".join(before))
            before = []
    return tuple(tests)


def _free_names(source: str) -> set[str]:
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name | ast.arg)]
    bound = {n.arg if isinstance(n, ast.arg) else n.id for n in nodes if _binds(n)}
    return {n.id for n in nodes if not _binds(n)} - bound - set(dir(builtins))


def _binds(node: ast.Name | ast.arg) -> bool:
    return isinstance(node, ast.arg) or isinstance(node.ctx, ast.Store)


def _defined(statements: Iterable[ast.stmt]) -> set[str]:
    """Names that top-level statements bind."""
    names: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            names |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and _binds(n)}
    return names


def _before(header: str, entry: str) -> str:
    """The header without the function to complete."""
    for statement in ast.parse(header).body:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry:
            first = min([statement.lineno, *(d.lineno for d in statement.decorator_list)])
            return "".join(header.splitlines(keepends=True)[: first - 1])
    return header


def _defines_classes(source: str) -> bool:
    return any(isinstance(statement, ast.ClassDef) for statement in ast.parse(source).body)
