"""Whether a sandbox can judge a problem: tried with the row's own solution, before training.

The tests of a file may do what cannot cross into a sandbox, and some published rows are wrong in
themselves. A right answer to them would be paid nothing, without a word; so they are left out.
"""

import copy
import json
import sys
import warnings
from collections.abc import Sequence

import torch

from datamodules.environments.code_problems import CodeProblem
from datamodules.guard import Failure, run_all
from datamodules.sandbox import PACKAGES, Sandbox, missing_packages, sandbox_version
from datamodules.text.cache import cached, digest
from datamodules.text.problems import gathered

CACHED = 50
"""Fewer problems are tried faster than a cache of them is worth."""


def judgeable(problems: Sequence[CodeProblem], sandbox: Sandbox) -> list[CodeProblem]:
    """The problems whose own solution passes all tests; those without one, if their tests can run.

    It takes a few hundredths of a second a problem, once on a machine for a file. The others are
    named in a warning.

    Raises:
        ValueError: none is left.
    """
    reasons = reasons_against(problems, sandbox)
    bad = [f"{p.where}: {why}" for p, why in zip(problems, reasons, strict=True) if why]
    if not bad:
        return list(problems)
    told = f"{len(bad)} of {len(problems)} problems left out: {'; '.join(gathered(bad))}"
    if len(bad) == len(problems):
        raise ValueError(told)
    warnings.warn(told, stacklevel=2)
    return [problem for problem, why in zip(problems, reasons, strict=True) if not why]


def reasons_against(problems: Sequence[CodeProblem], sandbox: Sandbox) -> list[str]:
    """Why each problem cannot be judged; an empty text where it can."""
    if len(problems) < CACHED:
        return found_anew(problems, sandbox)

    def found() -> dict[str, torch.Tensor]:
        text = json.dumps(found_anew(problems, sandbox)).encode()
        return {"reasons": torch.frombuffer(bytearray(text), dtype=torch.uint8)}

    rows = [(p.solved(), p.tests, p.setup, dict(p.calls)) for p in problems]
    limits = (sandbox.time_limit_s, sandbox.memory_mb, sandbox.output_kb)
    key = digest(rows, limits, sandbox.backend.name, sandbox_version(), sys.version)
    return list(json.loads(bytes(cached("code", key, found)["reasons"].tolist())))


def found_anew(problems: Sequence[CodeProblem], sandbox: Sandbox) -> list[str]:
    """``reasons_against``, whatever is known already."""
    found = run_all([lambda problem=p: _reason(problem, sandbox) for p in problems])
    patient = copy.copy(sandbox)
    patient.time_limit_s *= 2
    for i, result in enumerate(found):
        if isinstance(result, Failure):
            raise result.error
        if OVER_TIME in result:  # beside others it had less than its share of the machine
            found[i] = _reason(problems[i], patient).replace(OVER_TIME, TOO_SLOW)
    return found


OVER_TIME = "over its time limit"
TOO_SLOW = "it takes more than twice env.time_limit_s"


def _reason(problem: CodeProblem, sandbox: Sandbox) -> str:
    if missing := missing_packages(problem.packages):
        return (
            f"its tests import {', '.join(missing)}, and a sandbox has the standard library"
            f" and, where it is installed, {', '.join(PACKAGES)}"
        )
    program = problem.solved() if problem.solution.strip() else _stub(problem)
    try:
        report = problem.tried(program, sandbox)
    except ValueError as error:
        return str(error)
    if not problem.solution.strip() or report.passed == 1.0:
        return ""
    for test, outcome in zip(problem.tests, report.outcomes, strict=True):
        if outcome.status != "passed":
            said = f"{outcome.status} {outcome.text}".strip()
            return f"its own solution does not pass its test {test[-200:]!r} ({said})"
    raise AssertionError("a share below 1 has a test that was not passed")


def _stub(problem: CodeProblem) -> str:
    """An answer that takes anything: enough for a test to show what it hands over."""
    lines = ["class Any:", "    def __init__(self, *args, **kwargs):", "        pass"]
    for name in sorted(set(problem.calls.values())):
        kind = "Any" if name[:1].isupper() else "lambda *args, **kwargs: None"
        lines.append(f"{name} = {kind}")
    return "\n".join(lines)
