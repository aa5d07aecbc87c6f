"""Programming problems: read from files of three kinds of rows, and put into words.

- this project's own: ``name``, ``instruction``, ``entry_point``, ``visible_tests`` (shown in the
  prompt), ``hidden_tests`` (run for the reward).
- HumanEval (Chen et al. 2021, arXiv:2107.03374): ``task_id``, ``prompt`` (code that ends in a
  function's head), ``test`` (a function ``check(candidate)``), ``entry_point``.
- MBPP (Austin et al. 2021, arXiv:2108.07732): ``task_id``, ``text`` or ``prompt``, ``test_list``,
  ``test_setup_code`` or ``test_imports``, ``challenge_test_list``. The first test is shown, all
  are run.
"""

import ast
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from datamodules.environments.code_answers import (
    binds,
    blocks_of,
    candidates,
    defined,
    extract_code,
    parse,
    same_code,
    spoken,
)
from datamodules.environments.code_tests import asked_names, statements_of
from datamodules.sandbox import Report, Sandbox
from datamodules.text.tables import read_rows

OPENING = "```python\n"
SEED = "import random\nrandom.seed(0)\n"
"""Tests that draw random values draw the same ones for every answer."""


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
    solution: str = ""
    """A right answer: a whole program, or what completes ``header``."""
    where: str = ""
    """File and line."""

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
        said = spoken(response)
        text = said if chat or self.header else OPENING + said
        names = {self.completes} if self.header else set(self.calls.values())
        code = extract_code(text, names)
        if not self.header:
            return code, 0
        if binds(code, names):
            before = _before(self.header, self.completes)
            return before + code, before.count("\n")
        return self._completed(text)

    def tried(self, program: str, sandbox: Sandbox) -> Report:
        """What becomes of the tests when ``program`` is the answer; raises as the sandbox does."""
        return sandbox.run(
            program, self.tests, setup=self.setup, calls=self.calls, packages=self.packages
        )

    def solved(self) -> str:
        """The whole program of ``solution``."""
        if not self.header:
            return self.solution
        if binds(self.solution, {self.completes}):
            return _before(self.header, self.completes) + self.solution
        return self.header + self.solution

    @cached_property
    def packages(self) -> set[str]:
        """What the tests import besides the standard library."""
        trees = [ast.parse(source) for source in (self.setup, *self.tests)]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
        return {name.split(".")[0] for name in names} - sys.stdlib_module_names

    def _completed(self, text: str) -> tuple[str, int]:
        """The header with the body that a text holds; empty if that is remarks alone."""
        blocks = blocks_of(text)
        whole = [text] if len(blocks) == 1 else []
        tried = [*whole, *candidates(text, blocks)]
        indented = [textwrap.indent(block.code, "    ") for block in blocks if block.is_python]
        for code in (*tried, *indented):
            program = self.header + code
            if code[:1].isspace() and parse(program) and not same_code(program, self.header):
                return program, self.header.count("\n")
        return "", 0


def load_problems(
    path: str, option: str = "env.path", *, split: str | None = None, name: str | None = None
) -> list[CodeProblem]:
    """Read a file of problems (see ``read_rows`` for its formats).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row of no known kind, without tests, or with tests that are no Python.
    """
    problems, unread = [], set()
    for where, row in read_rows(path, split, option=option, name=name):
        problem, left_over = _read(where, row)
        problems.append(problem)
        unread |= left_over
    if not problems:
        raise ValueError(f"{option}={path!r} holds no problems")
    if unread:
        warnings.warn(f"{option}={path!r}: the columns {sorted(unread)} are not used", stacklevel=2)
    return problems


def _read(where: str, row: Any) -> tuple[CodeProblem, set[str]]:
    """A row's problem, and the columns that nothing reads."""
    given = set(row) if isinstance(row, Mapping) else set()
    for needed, more, read in KINDS:
        if needed <= given:
            try:
                problem = replace(read(row), where=where)
            except (SyntaxError, ValueError, KeyError, TypeError, AttributeError) as error:
                detail = f"{type(error).__name__}: {error}"
                raise ValueError(f"{where}: this problem cannot be read ({detail})") from error
            if not problem.tests:
                raise ValueError(f"{where}: no test of this problem asserts what the answer gives")
            return problem, {name for name in given - needed - more if row[name]}
    kinds = "; or ".join(", ".join(sorted(needed)) for needed, _, _ in KINDS)
    raise ValueError(f"{where}: the columns {sorted(given)} are not of a problem: give {kinds}")


def _own(row: Mapping[str, Any]) -> CodeProblem:
    entry = row["entry_point"]
    return CodeProblem(
        name=row["name"],
        instruction=row["instruction"],
        tests=statements_of("\n".join(row["hidden_tests"]), {entry}),
        visible=tuple(row["visible_tests"]),
        calls={entry: entry},
        solution=row.get("solution") or "",
    )


def _human_eval(row: Mapping[str, Any]) -> CodeProblem:
    module = ast.parse(row["test"])
    checks = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    if len(checks) != 1 or len(checks[0].args.args) != 1:
        raise ValueError("its test must define one function check(candidate)")
    [check], [candidate] = checks, [argument.arg for argument in checks[0].args.args]
    entry = row["entry_point"]
    others = ast.unparse([n for n in module.body if n is not check and not _calls(n, "check")])
    # The head as it was given: an answer cannot replace the helpers that its tests rely on.
    seed = SEED if "random" in row["test"] else ""
    setup = f"{row['prompt']}\n{others}\n{seed}"
    ast.parse(setup)
    return CodeProblem(
        name=str(row["task_id"]),
        instruction="",
        tests=statements_of(ast.unparse(check.body), {candidate, entry}, setup),
        setup=setup,
        header=row["prompt"],
        completes=entry,
        calls={candidate: entry, entry: entry},
        solution=row.get("canonical_solution") or "",
    )


def _calls(statement: ast.stmt, name: str) -> bool:
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) == name


def _mbpp(row: Mapping[str, Any]) -> CodeProblem:
    tests = [*row["test_list"], *(row.get("challenge_test_list") or ())]
    if not tests:
        raise ValueError("its test_list is empty")
    setup = "\n".join([row.get("test_setup_code") or "", *(row.get("test_imports") or ())])
    solution = row.get("code") or ""
    names, modules = asked_names("\n".join(tests), setup, solution)
    imports = "".join(f"import {name}\n" for name in sorted(modules))
    return CodeProblem(
        name=f"MBPP/{row['task_id']}",
        instruction=row.get("text") or row["prompt"],
        tests=statements_of("\n".join(tests), names | defined(ast.parse(setup).body), setup),
        visible=tuple(row["test_list"][:1]),
        setup=imports + setup,
        calls={name: name for name in sorted(names)},
        solution=solution,
    )


Kind = tuple[set[str], set[str], Callable[[Mapping[str, Any]], CodeProblem]]
KINDS: tuple[Kind, ...] = (
    (
        {"name", "instruction", "entry_point", "visible_tests", "hidden_tests"},
        {"solution", "wrong_solution"},
        _own,
    ),
    ({"task_id", "prompt", "test", "entry_point"}, {"canonical_solution"}, _human_eval),
    (
        {"task_id", "test_list"},
        {"text", "prompt", "code", "test_setup_code", "test_imports", "challenge_test_list"},
        _mbpp,
    ),
)
"""Columns that a kind of row has, columns that it may have, and what reads it."""


def _before(header: str, entry: str) -> str:
    """The header without the function to complete."""
    for statement in ast.parse(header).body:
        if isinstance(statement, ast.FunctionDef) and statement.name == entry:
            first = min([statement.lineno, *(d.lineno for d in statement.decorator_list)])
            return "".join(header.splitlines(keepends=True)[: first - 1])
    return header
