"""Files of problems as they are published: each row is judged as it should be, or left out."""

import json
import os
from pathlib import Path

import pytest

from datamodules.environments import code_checks
from datamodules.environments.code import CodeGenerationEnv
from datamodules.environments.code_checks import found_anew, judgeable, reasons_against
from datamodules.environments.code_problems import load_problems
from datamodules.sandbox import Sandbox
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MBPP = os.environ.get("MBPP_FILE")
"""MBPP as published, for whoever has it."""


@pytest.fixture(scope="module")
def sandbox():
    try:
        return Sandbox("auto", time_limit_s=20)
    except ValueError:
        return Sandbox("unsafe", time_limit_s=20)


def jsonl(folder: Path, *rows) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mbpp(tests, code="", setup="", **more):
    tests = tests if isinstance(tests, list) else [tests]
    row = {"task_id": 1, "text": "Do it.", "code": code, "test_list": tests}
    return row | {"test_setup_code": setup, "challenge_test_list": []} | more


def humaneval(test, solution="    return sum(xs)\n", prompt="def f(xs):\n    '''Sum.'''\n"):
    row = {"task_id": "HumanEval/1", "prompt": prompt, "entry_point": "f", "test": test}
    return row | {"canonical_solution": solution}


PLUS = """
import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    return isinstance(x, float) or isinstance(x, np.ndarray) and x.dtype == np.float64

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match

def check(candidate):
    inputs = [[[1.5, 2.0]], [[]]]
    results = [3.5000001, 0]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""
NODE = "class Node:\n    def __init__(self, v):\n        self.left, self.right = None, None\n"
DEPTH = "def depth(n):\n    return 0 if n is None else 1 + max(depth(n.left), depth(n.right))"
ROOT = "root = Node(1)\r\nroot.left = Node(2)"
SUM = "def sum(a, b):\r\n    return a + b"
ROWS = {
    "a builtin's name": (mbpp("assert sum(10, 15) == 25", SUM), "sum"),
    "a builtin's name, no code": (mbpp("assert sum(10, 15) == 25"), "sum"),
    "a builtin's name, negated": (mbpp(["assert not any(1) and any(0)", "assert any(2)"]), "any"),
    "a builtin's name among others": (mbpp("assert sum(abs(-3), len('a')) == 4", SUM), "sum"),
    "a builtin beside the answer": (mbpp("assert sorted(f(2)) == [1, 2]"), "f"),
    "a module's name": (mbpp(["assert statistics(2) == 3", "assert math.isclose(2, 2)"]),
                        "statistics"),
    "a module beside the answer": (mbpp("assert math.isclose(f(2), sys.maxsize - 1)"), "f"),
    "objects of the answer": (mbpp("assert depth(root) == 2", NODE + DEPTH, ROOT), "Node depth"),
    "objects, no code": (mbpp("assert depth(root) == 2", "", ROOT), "Node depth"),
    "a type": (mbpp("assert f((4, 7.7), int) == [7.7]",
                    "def f(xs, t):\n    return [x for x in xs if type(x) is not t]"), "f"),
    "set-up with the answer": (mbpp("assert y == 3", "def f(x):\n    return x + 1", "y = f(2)"),
                               "f"),
    "asserts in a helper": (mbpp("check(f(2), 3)", "def f(x):\n    return x + 1",
                                 "def check(a, b):\n    assert a == b"), "f"),
    "raises in a helper": (mbpp("check(f(2), 3)", "def f(x):\n    return x + 1",
                                "def check(a, b):\n    if a != b:\n        raise ValueError"), "f"),
    "prints": (mbpp("print(f(2))\nassert f(2) == 3", "def f(x):\n    return x + 1"), "f"),
    "imports": (mbpp("assert m.floor(f(2)) == 3", "def f(x):\n    return x + 1.5",
                     test_imports=["import math as m"]), "f"),
    "HumanEval": (humaneval("def check(candidate):\n    assert candidate([1, 2]) == 3\n"), "f"),
    "HumanEval, whole": (humaneval("def check(c):\n    assert c([1, 2]) == 3\n",
                                   "def f(xs):\n    return sum(xs)"), "f"),
    "HumanEval+": (humaneval(PLUS), "f"),
    "HumanEval, calls its check": (
        humaneval("def check(f):\n    assert f([1, 2]) == 3\n\ncheck(f)\n"), "f"),
    "HumanEval, a reference in the tests": (
        humaneval("def ref(xs):\n    return xs[0] + 2\ndef check(candidate):\n"
                  "    for x in [[1, 2]]:\n        assert candidate(x) == ref(x)\n"), "f"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_a_row_is_judged_by_what_its_tests_call(tmp_path, sandbox, case):
    row, names = ROWS[case]
    [problem] = load_problems(jsonl(tmp_path, row))
    assert set(problem.calls.values()) == set(names.split())
    assert found_anew([problem], sandbox) == [""]
    nothing = "".join(f"{name} = lambda *a, **k: None\n" for name in problem.calls.values())
    report = sandbox.run(nothing, problem.tests, setup=problem.setup, calls=problem.calls,
                         packages=problem.packages)  # fmt: skip
    assert report.passed == 0, "a wrong answer passes"


LEFT_OUT = {
    "an object of the tests": (
        mbpp("assert f(Own()) == 1", "def f(x):\n    return 1", "class Own:\n    pass"),
        "the test .* cannot be run in a sandbox: f is given Own, which is neither plain data"),
    "the same without code": (mbpp("assert f([Own()]) == 1", "", "class Own:\n    pass"),
                              "f is given Own"),
    "a wrong solution": (mbpp(["assert f(1) == 2", "assert f(2) == 9"],
                              "def f(x):\n    return x + 1"),
                         r"its own solution does not pass its test 'assert f\(2\) == 9'"),
    "another name": (mbpp("assert g(1) == 2", "def f(x):\n    return x + 1"),
                     "NameError: the answer defines no g"),
    "objects compared": (
        mbpp("assert f(1) == P(1)", "class P:\n    def __init__(self, x):\n        self.x = x\n"
             "    def __eq__(self, o):\n        return self.x == o.x\ndef f(x):\n    return P(x)"),
        "unjudged __eq__ of an object of the answer's own class"),
    "a broken set-up": (mbpp("assert f(1) == 2", "", "import os\nos.nope()"),
                        "its set-up: AttributeError"),
    "a package": (mbpp("assert f(1) == pandas.NA", "", "import pandas"),
                  "its tests import pandas, and a sandbox has the standard library and"),
    "files": (mbpp("assert f() == open('/etc/passwd').read()", "def f():\n    return ''"),
              "its own solution does not pass its test .*Error"),
    "too slow": (mbpp("assert f() == 1", "def f():\n    while True:\n        pass"),
                 r"takes more than twice env\.time_limit_s"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_row_that_cannot_be_judged_is_left_out_by_file_and_line(tmp_path, sandbox, case):
    row, message = LEFT_OUT[case]
    right = mbpp("assert g(1) == 1", "def g(x):\n    return x", task_id=2)
    problems = load_problems(jsonl(tmp_path, right, row))
    fast = Sandbox(sandbox.backend.name, time_limit_s=0.6) if case == "too slow" else sandbox
    with pytest.warns(
        UserWarning, match=rf"1 of 2 problems left out: .*rows\.jsonl, line 2: .*{message}"
    ):
        assert judgeable(problems, fast) == problems[:1]
    with pytest.raises(ValueError, match=f"1 of 1 problems left out: .*{message}"):
        judgeable(problems[1:], fast)


def test_the_environment_leaves_them_out_and_trains_on_the_others(tmp_path, sandbox):
    wrong = mbpp("assert f(1) == 3", "def f(x):\n    return x")
    path = jsonl(tmp_path, wrong, mbpp("assert g(1) == 1", "def g(x):\n    return x", task_id=2))
    with pytest.warns(UserWarning, match=r"1 of 2 problems left out: .*line 1"):
        env = CodeGenerationEnv(TOKENIZER, path, heldout=0, sandbox=sandbox.backend.name)
    assert list(env.problems) == ["MBPP/2"]


def test_what_is_found_is_kept_until_anything_changes(tmp_path, sandbox, monkeypatch):
    monkeypatch.setattr(code_checks, "CACHED", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ran = []
    monkeypatch.setattr(code_checks, "found_anew", lambda p, s: ran.append(1) or ["", "no"])
    rows = [mbpp("assert f(1) == 1", "def f(x):\n    return x", task_id=i) for i in range(2)]
    problems = load_problems(jsonl(tmp_path, *rows))
    for _ in range(2):
        assert reasons_against(problems, sandbox) == ["", "no"]
    assert len(ran) == 1
    changed = load_problems(jsonl(tmp_path, rows[0], rows[1] | {"code": "f = 3"}))
    reasons_against(changed, sandbox)
    reasons_against(problems, Sandbox(sandbox.backend.name, time_limit_s=7))
    assert len(ran) == 3


def test_columns_that_nothing_reads_are_named(tmp_path):
    rows = mbpp("assert f(1) == 1", source_file="a.pdf", note=""), mbpp("assert f(1) == 1")
    with pytest.warns(UserWarning, match=r"the columns \['source_file'\] are not used"):
        load_problems(jsonl(tmp_path, *rows))


def test_challenge_tests_are_run_too_and_only_the_first_test_is_shown(tmp_path):
    row = mbpp(["assert f(1) == 1", "assert f(2) == 2"], challenge_test_list=["assert f(3) == 3"])
    [problem] = load_problems(jsonl(tmp_path, row))
    assert problem.tests == ("assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3")
    assert problem.visible == ("assert f(1) == 1",)


def test_a_test_that_only_the_answer_could_judge_is_told_of_once(tmp_path, sandbox):
    path = jsonl(tmp_path, mbpp("assert f(1) == P(1)"))
    env = CodeGenerationEnv(TOKENIZER, path, heldout=0, sandbox=sandbox.backend.name)
    code = "class P:\n    def __init__(self, x):\n        pass\n    def __eq__(self, o):\n"
    code += "        return True\nf = P\n"
    with pytest.warns(UserWarning, match=r"line 1: a test of the problem 'MBPP/1' needs __eq__"):
        assert env.judge("MBPP/1", code).tests == 0
    assert env.judge("MBPP/1", code + "# again").tests == 0


@pytest.mark.skipif(MBPP is None, reason="MBPP_FILE names no file")
def test_rows_of_mbpp_that_are_unlike_the_others(sandbox):
    """All 974 take a minute: ``benchmarks/own_solutions.py``."""
    problems = load_problems(MBPP)
    assert len(problems) == 974
    unlike = [
        p for p in problems if p.name in {f"MBPP/{i}" for i in (126, 367, 533, 596, 601, 927)}
    ]
    assert found_anew(unlike, sandbox) == [""] * 6
