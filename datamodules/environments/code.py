"""Write a program; tests that the policy has not seen judge it, in a sandbox."""

import json
import random
import re
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ruff import find_ruff_bin
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.environments.base import Options
from datamodules.environments.code_answers import parse
from datamodules.environments.code_checks import judgeable
from datamodules.environments.code_problems import OPENING, CodeProblem, load_problems
from datamodules.environments.multi_objective import MultiObjectiveRewardEnv
from datamodules.sandbox import MEMORY_MB, TIME_LIMIT_S, Report, Sandbox
from datamodules.text.held_out import Source, source_of
from datamodules.text.prompts import Prompt
from datamodules.text.tables import PACKAGE, require_dataset

OWN_PROBLEMS = f"{PACKAGE}code_problems.jsonl"
WEIGHTS = {"syntax": 0.1, "style": 0.1, "tests": 0.8}
STYLE_RULES = ("--select=E,W,F,B,N,C4,SIM", "--ignore=B905,E402,F811", "--line-length=100")
"""Of ruff: pycodestyle, pyflakes, likely mistakes, names, comprehensions, simplifications; no
``strict`` for every ``zip``, and an answer may repeat the imports and helpers that it was given."""
AFTER_A_BLOCK = (f"\n{OPENING[:3]}\n",)
AFTER_A_FUNCTION = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")
"""Where a completed function has ended (Chen et al. 2021, section 2.1)."""
CACHED = 4096


@dataclass(frozen=True)
class Judgement:
    """What an answer is worth, each part 0 to 1."""

    syntax: float = 0.0
    style: float = 0.0
    tests: float = 0.0
    stopped: float = 0.0
    """1 if it ran into a limit of time or output."""


class CodeGenerationEnv(MultiObjectiveRewardEnv):
    """One problem, one answer: ``reward = 0.1 syntax + 0.1 style + 0.8 tests``.

    - ``tests``: the share of hidden tests that it passes. ``correct`` is 1 if it passes all.
    - ``syntax``: 1 if it is Python that runs: some test got a value from it, right or wrong, and no
      limit ended it. Text that only parses, or raises in every test, earns nothing.
    - ``style``: the share of its lines that ruff has nothing to say of; 0 where no test passes.

    The code is the response's last block that defines what the tests call, with the blocks before
    it that it needs; see ``extract_code``. Thoughts are no answer. The same answer to the same
    problem is run once. A problem whose own solution does not pass its tests here is left out.

    Args:
        tokenizer: of the policy. With a chat template the problems are put as a user's message.
        path: problems to train on: the project's own by default, or a file of rows of HumanEval's
            or MBPP's kind (see ``load_problems``).
        eval_path: held-out problems; without it a data set's own test split, where it has one.
        split, eval_split, name: of folders and Hugging Face datasets, see ``read_rows``.
        heldout: without ``eval_path``: share of the problems that is held out, the same ones every
            time; 0 leaves the choice to the data module.
        sandbox: ``auto``, ``bubblewrap``, ``landlock`` or ``unsafe``, see ``Sandbox``.
        time_limit_s, memory_mb: of one answer with all its tests, see ``Sandbox``.
        reward_weights: of ``syntax``, ``style`` and ``tests``.
        options: see ``Environment``.

    Raises:
        ValueError: an impossible option, a bad row, two problems of one name, or no isolation.
    """

    max_length = 1024
    stop_sequences = None
    """Default: what ends a block or a function, where the policy continues code as plain text; none
    in a chat."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        path: str | None = None,
        eval_path: str | None = None,
        *,
        split: str | None = None,
        eval_split: str | None = None,
        name: str | None = None,
        heldout: float = 0.25,
        sandbox: str = "auto",
        time_limit_s: float = TIME_LIMIT_S,
        memory_mb: int = MEMORY_MB,
        reward_weights: Mapping[str, float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.sandbox = Sandbox(sandbox, time_limit_s=time_limit_s, memory_mb=memory_mb)
        require_dataset("env.split", split, path)
        require_dataset("env.eval_split", eval_split, path, eval_path)
        require_dataset("env.name", name, path, eval_path)
        source = source_of(path, split, eval_path, eval_split, name, "env")
        train, held_out = _read(path, split, source, name, self.sandbox)
        problems, self.held_out = _split(train, held_out, path or OWN_PROBLEMS, heldout)
        self.problems = _by_name(problems)
        self.chat = tokenizer.chat_template is not None
        super().__init__(
            tokenizer,
            [_prompt(problem, self.chat) for problem in problems],
            reward_components={name: self._component(name) for name in WEIGHTS},
            reward_weights=WEIGHTS if reward_weights is None else reward_weights,
            **options,
        )
        if self.stop_sequences is None:
            completed = all(problem.header for problem in problems)
            after = AFTER_A_FUNCTION if completed else AFTER_A_BLOCK
            self.stop_sequences = () if self.chat else after
        self._unjudged: set[str] = set()
        self._judge = lru_cache(CACHED)(self._judge_anew)

    def set_options(self, **options: Unpack[Options]) -> None:
        """See ``Environment``.

        Raises:
            ValueError: an endless program would fail the environment, not cost its answer.
        """
        super().set_options(**options)
        if self.timeout_s is not None and self.timeout_s <= self.sandbox.time_limit_s:
            limit = self.sandbox.time_limit_s
            raise ValueError(
                f"env.timeout_s={self.timeout_s} must be above env.time_limit_s={limit}"
            )

    def judge(self, name: str, response: str) -> Judgement:
        """What ``response`` to the problem ``name`` is worth.

        Raises:
            ValueError: there is no such problem, or its tests cannot be run in a sandbox.
        """
        if name not in self.problems:
            raise ValueError(f"there is no problem {name!r}: give one of env.problems in metadata")
        return self._judge(name, response)

    def _judge_anew(self, name: str, response: str) -> Judgement:
        problem = self.problems[name]
        program, given_lines = problem.program(response, chat=self.chat)
        if not program.strip() or parse(program) is None:
            return Judgement()
        try:
            report = problem.tried(program, self.sandbox)
        except ValueError as error:
            raise ValueError(f"{problem.where}: the problem {name!r}: {error}") from error
        self._tell_of_unjudged(problem, report)
        return Judgement(
            syntax=float(report.ran),
            style=style(program, given_lines) if report.passed else 0.0,
            tests=report.passed,
            stopped=float(report.stopped is not None),
        )

    def _tell_of_unjudged(self, problem: CodeProblem, report: Report) -> None:
        """Once a problem: its answers are paid nothing for a test that only they could judge."""
        told = [outcome.text for outcome in report.outcomes if outcome.status == "unjudged"]
        if told and problem.name not in self._unjudged:
            self._unjudged.add(problem.name)
            warnings.warn(
                f"{problem.where}: a test of the problem {problem.name!r} needs {told[0]}, which"
                " only the answer could judge: such answers do not pass it",
                stacklevel=2,
            )

    def _component(self, part: str) -> Any:
        def component(prompt: str, generated: str, full_text: str, metadata: Mapping) -> float:
            return getattr(self.judge(metadata.get("name"), generated), part)

        return component

    def _score_episode(self, episode: "CodeGenerationEnv") -> tuple[float, dict]:
        reward, metrics = super()._score_episode(episode)
        judgement = self.judge(episode.metadata["name"], episode.response)
        correct = float(judgement.tests == 1.0)
        return reward, metrics | {"correct": correct, "stopped": judgement.stopped}


def create_code_generation_env(
    tokenizer: PreTrainedTokenizerBase, path: str | None = None, **options: Any
) -> CodeGenerationEnv:
    """``CodeGenerationEnv`` under the name that is known for it."""
    return CodeGenerationEnv(tokenizer, path, **options)


def style(program: str, given_lines: int = 0) -> float:
    """Share of a program's lines of code, after the first ``given_lines``, that ruff lets pass.

    One call takes about a hundredth of a second.
    """
    lines = re.split(r"\r\n?|\n", program)[given_lines:]  # as Python and ruff count them
    code = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)
    command = [find_ruff_bin(), "check", "--isolated", "--no-cache", "--exit-zero", *STYLE_RULES]
    command += ["--output-format=json", "-"]
    text = program.rstrip() + "\n"
    found = subprocess.run(command, input=text.encode(), capture_output=True)
    if found.returncode < 0:  # it crashed, as parsers do on what is nested too deeply
        return 0.0
    found.check_returncode()
    rows = {finding["location"]["row"] for finding in json.loads(found.stdout)}
    return max(0.0, 1 - sum(row > given_lines for row in rows) / code) if code else 0.0


def _read(
    path: str | None, split: str | None, source: Source | None, name: str | None, sandbox: Sandbox
) -> tuple[list[CodeProblem], list[CodeProblem] | None]:
    """Problems to train on, and those of a held-out source: what the sandbox can judge of them."""
    train = load_problems(path or OWN_PROBLEMS, split=split, name=name)
    if path is not None:  # the solutions of the project's own problems run in its tests
        train = judgeable(train, sandbox)
    if source is None:
        return train, None
    held_out = load_problems(source.path, source.option, split=source.split, name=name)
    return train, judgeable(held_out, sandbox)


def _split(
    train: list[CodeProblem], held_out: list[CodeProblem] | None, path: str, heldout: float
) -> tuple[list[CodeProblem], Sequence[int] | None]:
    """All problems, and the numbers of those that are held out."""
    if not 0 <= heldout < 1:
        raise ValueError(f"env.heldout={heldout} must be at least 0 and below 1")
    if held_out is not None:
        return train + held_out, range(len(train), len(train) + len(held_out))
    count = round(heldout * len(train))
    if count == len(train):
        raise ValueError(
            f"env.heldout={heldout} of the {len(train)} problems in {path} leaves none to train on"
        )
    return train, sorted(random.Random(0).sample(range(len(train)), count)) or None


def _by_name(problems: Sequence[CodeProblem]) -> dict[str, CodeProblem]:
    named: dict[str, CodeProblem] = {}
    for problem in problems:
        if problem.name in named:
            raise ValueError(
                f"there are two problems named {problem.name!r}: give each its own, and keep those"
                " of env.eval_path out of env.path"
            )
        named[problem.name] = problem
    return named


def _prompt(problem: CodeProblem, chat: bool) -> Prompt:
    """A user's message, or code to go on from. Its metadata give the name, never the tests."""
    content = [{"role": "user", "content": problem.request()}] if chat else problem.opening()
    return Prompt(content, {"name": problem.name})
