"""How many problems of a file score 1.0 with their own solutions, and why the others do not.

    PYTHONPATH=. python benchmarks/own_solutions.py mbpp.jsonl
    PYTHONPATH=. python benchmarks/own_solutions.py HumanEval.jsonl --wrong

With `--wrong` each problem is also given answers that cannot be right: one that returns None, and
one that returns an object equal to everything. Those that are paid in full are shown.
"""

import argparse
import time
from collections.abc import Sequence

from datamodules.environments.code_checks import found_anew
from datamodules.environments.code_problems import CodeProblem, load_problems
from datamodules.guard import run_all
from datamodules.sandbox import Sandbox

EQUAL_TO_ALL = """
class Any:
    def __init__(self, *args, **kwargs):
        pass
    __eq__ = __le__ = __ge__ = __lt__ = __gt__ = __contains__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __sub__ = __rsub__ = __add__ = __abs__ = __round__ = lambda self, *other: self
    __hash__ = __len__ = __int__ = lambda self: 1
    __float__ = lambda self: 1.0
    __getattr__ = lambda self, name: self
"""


def wrong_answers(problem: CodeProblem) -> list[str]:
    names = sorted(set(problem.calls.values()))
    nothing = "".join(f"{name} = lambda *a, **k: None\n" for name in names)
    anything = EQUAL_TO_ALL + "".join(f"{name} = Any\n" for name in names)
    return [nothing, anything]


def passed(problem: CodeProblem, program: str, sandbox: Sandbox) -> float:
    return problem.tried(program, sandbox).passed


def judge_wrong(problems: Sequence[CodeProblem], sandbox: Sandbox) -> None:
    given = [(problem, answer) for problem in problems for answer in wrong_answers(problem)]
    calls = [lambda p=problem, a=answer: passed(p, a, sandbox) for problem, answer in given]
    for (problem, answer), share in zip(given, run_all(calls), strict=True):
        if share == 1.0:
            print(f"PAID IN FULL {problem.where}: {problem.tests}\n{answer.strip()[-60:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--sandbox", default="auto")
    parser.add_argument("--wrong", action="store_true", help="give wrong answers, too")
    args = parser.parse_args()
    sandbox, problems = Sandbox(args.sandbox), load_problems(args.file)
    began = time.perf_counter()
    reasons = found_anew(problems, sandbox)
    seconds = time.perf_counter() - began
    for problem, why in zip(problems, reasons, strict=True):
        if why:
            print(f"{problem.where} ({problem.name}): {why}")
    right = reasons.count("")
    print(f"{right} of {len(problems)} problems score 1.0 with their own solution, {seconds:.1f} s")
    if args.wrong:
        judge_wrong([p for p, why in zip(problems, reasons, strict=True) if not why], sandbox)


if __name__ == "__main__":
    main()
