"""What both sides of `compare_trl.py grpo` and `distill` share: questions, reward, and a count of
their work.

TRL's side reads this file in an environment of its own, so it imports our packages only where it
makes questions up. Run as a program it prints the `GRPOInputs` as one JSON line; a process of its
own, so that the driver stays small (see `inputs.py`).
"""

import argparse
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from inputs import CACHE, model_folder

WORD_PROBLEMS = 6
"""Difficulty of the project's own problems that stand in for GSM8K: two operations, in words."""
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class GRPOInputs:
    """Paths that both sides receive, and where the questions are from."""

    model: str
    questions: str
    """JSONL of `prompt` and `answer`."""
    source: str


def read(path: str, count: int) -> list[dict[str, str]]:
    """The first `count` questions of a file of GSM8K's kind, with their final numbers.

    Raises:
        ValueError: a row without `question` or `answer`, or too few rows.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines()[:count], 1):
        row = json.loads(line)
        if not all(isinstance(row.get(name), str) for name in ("question", "answer")):
            raise ValueError(f"{path}, line {number}: question and answer must be texts")
        answer = row["answer"].rpartition("####")[2].strip()
        if not NUMBER.fullmatch(answer):
            raise ValueError(f"{path}, line {number}: the answer {answer!r} is no number")
        rows.append({"prompt": row["question"], "answer": answer})
    if len(rows) < count:
        raise ValueError(
            f"{path}: {len(rows)} questions, {count} wanted: lower --steps or --questions"
        )
    return rows


def generated(count: int) -> list[dict[str, str]]:
    """The project's own word problems."""
    from datamodules.environments.math_problems import generate

    problems, _ = generate(WORD_PROBLEMS, num_problems=count, num_held_out=0, seed=0)
    return [{"prompt": problem.question, "answer": str(problem.answer)} for problem in problems]


def make_inputs(
    model: str | None, prompts: str | None, count: int, cache: Path = CACHE
) -> GRPOInputs:
    """Checkpoint and `count` questions, from the file `prompts` or else generated."""
    cache.mkdir(parents=True, exist_ok=True)
    rows = generated(count) if prompts is None else read(prompts, count)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = cache / f"questions-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{count}.jsonl"
    path.write_text(text, encoding="utf-8")
    source = "generated word problems" if prompts is None else Path(prompts).name
    return GRPOInputs(model=str(model_folder(model)), questions=str(path), source=source)


def questions(path: Path) -> list[dict[str, str]]:
    """What `make_inputs` has written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reward(response: str, answer: str) -> float:
    """1 if the last number is the answer, plus the share of digits in the text.

    The share does not depend on the length, and hardly two responses have the same, so that a group
    has something to learn from even where no answer is right.
    """
    numbers = NUMBER.findall(response)
    value = lambda number: float(number.replace(",", ""))  # noqa: E731
    right = bool(numbers) and value(numbers[-1]) == value(answer)
    return right + sum(map(str.isdigit, response)) / max(len(response), 1)


class Work:
    """Tokens, padding included, that a policy and its reference (or teacher) compute, by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, int]] = []
        self._step: Counter[str] = Counter()

    def watch(self, policy: Any, reference: Any) -> None:
        """Count from now on what these networks (without their heads) are called with."""
        policy.register_forward_pre_hook(self._count_policy, with_kwargs=True)
        reference.register_forward_pre_hook(self._count_reference, with_kwargs=True)

    def end_step(self) -> None:
        self.steps.append(dict(self._step))
        self._step.clear()

    def _count_policy(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"]
        without = "decoding" if ids.shape[1] == 1 else "prefill"
        self._step["training" if torch.is_grad_enabled() else without] += ids.numel()

    def _count_reference(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._step["reference"] += kwargs["input_ids"].numel()


def check_lengths(lengths: Sequence[int], expected: int) -> None:
    """Raises RuntimeError unless every response has exactly the tokens it was to have."""
    if set(lengths) != {expected}:
        raise RuntimeError(f"responses of {sorted(set(lengths))} tokens, expected {expected} each")


def arguments(description: str) -> argparse.ArgumentParser:
    """What both sides are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--questions", required=True, type=Path, help="JSONL; each is asked once")
    parser.add_argument("--questions-per-step", type=int, default=2)
    parser.add_argument("--generations", type=int, default=8, help="responses to each question")
    parser.add_argument("--response-length", type=int, default=64, help="tokens of a response")
    parser.add_argument("--warmup", type=int, default=1, help="optimizer steps before timed ones")
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--teacher", help="folder of a model to distill, instead of GRPO")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, required=True, help="responses a backward pass")
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    parser.add_argument("--threads", type=int, default=threads)
    return parser


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--prompts", help="JSONL of question and answer; default: generated")
    parser.add_argument("--count", type=int, required=True, help="number of questions")
    options = parser.parse_args()
    print(json.dumps(asdict(make_inputs(options.model, options.prompts, options.count))))
