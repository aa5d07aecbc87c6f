"""What the tests of a programming problem are made of: their statements, and what they call."""

import ast
import builtins
import sys
from collections.abc import Collection, Iterator

from datamodules.environments.code_answers import defined, free_names

RAISING = (ast.Assert, ast.Raise)


def statements_of(source: str, names: Collection[str], setup: str = "") -> tuple[str, ...]:
    """One text a test: each statement that may fail because of ``names``, with those before it.

    It asserts something itself, or by a function of ``source`` or ``setup`` that does. (HumanEval's
    checks hold ``assert True`` as well, which would be passed by any answer.)
    """
    tree = ast.parse(source)
    functions = {
        node.name: node
        for node in (*ast.walk(ast.parse(setup)), *ast.walk(tree))
        if isinstance(node, ast.FunctionDef)
    }
    tests, before = [], []
    for statement in tree.body:
        before.append(ast.unparse(statement))
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
            continue
        reached = list(_reached(statement, functions))
        called = any(isinstance(n, ast.Name) and n.id in names for n in reached)
        if called and any(map(_may_fail, reached)):
            tests.append("\n".join(before))
            before = []
    return tuple(tests)


def _reached(statement: ast.stmt, functions: dict[str, ast.FunctionDef]) -> Iterator[ast.AST]:
    """What is in a statement, and in the functions that it uses."""
    waiting: list[ast.AST] = [statement]
    known: set[str] = set()
    while waiting:
        for node in ast.walk(waiting.pop()):
            yield node
            if isinstance(node, ast.Name) and node.id in functions and node.id not in known:
                known.add(node.id)
                waiting.append(functions[node.id])


def _may_fail(node: ast.AST) -> bool:
    """By an assertion, an exception, or a method such as ``numpy.testing.assert_allclose``."""
    return isinstance(node, RAISING) or (
        isinstance(node, ast.Attribute) and node.attr.lower().startswith("assert")
    )


def asked_names(tests: str, setup: str, solution: str) -> tuple[set[str], set[str]]:
    """The names that tests and set-up expect of the answer, and the modules that they expect.

    A name of Python's own (``sum``, ``statistics``) is the answer's where the row's own solution
    defines it, or where the tests call it and nothing else could be the answer.

    Raises:
        ValueError: they call nothing that could be the answer.
    """
    test_tree, setup_tree = ast.parse(tests), ast.parse(setup)
    own = defined(setup_tree.body) | defined(test_tree.body)
    trees = ast.Module([*setup_tree.body, *test_tree.body], [])
    free = free_names(trees) - own
    called = {n.func.id for n in ast.walk(trees) if _calls_a_name(n)}
    modules = {name for name in free - called if name in sys.stdlib_module_names}
    given = defined(ast.parse(solution).body) if solution.strip() else set()
    used = {n.id for n in ast.walk(trees) if isinstance(n, ast.Name)}
    answer = (free - modules) | (used & given - own)
    if not answer:
        answer = _outermost(test_tree) - own
    if not answer:
        raise ValueError("its tests call nothing that could be the answer")
    return answer, modules - answer


def _calls_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _outermost(tree: ast.Module) -> set[str]:
    """The function of Python's own name that every assertion calls first: ``sum`` in
    ``assert sum(10, 15) == 6``."""
    found = []
    for statement in tree.body:
        if isinstance(statement, ast.Assert):
            left = statement.test
            while isinstance(left, ast.Compare | ast.BoolOp | ast.UnaryOp):
                left = next(n for n in ast.iter_child_nodes(left) if isinstance(n, ast.expr))
            found.append({left.func.id} if _calls_a_name(left) else set())
    return set.intersection(*found) & set(dir(builtins)) if found else set()
