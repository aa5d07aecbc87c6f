"""Scoring answers beside generating them: 512 of mathematics, 64 of code with 5 tests each.

The embedded model answers the problems of `env=math` (arithmetic, answers of a few tokens) and
`env=code`; then the environment scores the finished episodes as one batch, as training does. A
small model's answers are easy to judge, so others that are not stand beside them, next to the time
that generating the sampled ones took: formulas, each of which `math-verify` has to compare (its
start included), and right programs, which run through all tests. No two of those are the same, for
the environments remember what they have judged.

    PYTHONPATH=. python benchmarks/scoring.py
    PYTHONPATH=. python benchmarks/scoring.py --maths 32 --code 4 --code-tokens 16
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from inputs import model_folder

from datamodules.environments.code import OWN_PROBLEMS, CodeGenerationEnv
from datamodules.environments.maths import MathEnv
from datamodules.environments.text import TextGenerationEnv
from datamodules.seeding import derive_seed
from datamodules.text.tables import read_rows
from datamodules.types import SamplingParams
from rlmodules.models import ModelConfig, load_model, load_tokenizer
from rlmodules.sampling.decoding import sample

TESTS = 5
BATCH = 128
"""Episodes sampled at once."""


@dataclass(frozen=True)
class Model:
    """A policy to sample from."""

    network: Any
    tokenizer: Any
    seed: int

    def answer(
        self, env: TextGenerationEnv, starts: Sequence[int], max_new_tokens: int
    ) -> tuple[list[TextGenerationEnv], float]:
        """Finished episodes, and the mean tokens of their responses."""
        episodes, tokens = [], 0
        stops = tuple(env.stop_sequences)
        params = SamplingParams(max_new_tokens=max_new_tokens, stop_strings=stops)
        for first in range(0, len(starts), BATCH):
            forks = [env.fork() for _ in starts[first : first + BATCH]]
            seen = [e.reset(i) for e, i in zip(forks, starts[first:], strict=False)]
            seeds = [derive_seed(self.seed, first + i) for i in range(len(forks))]
            prompts = [observation.input_ids for observation in seen]
            said = sample(self.network, self.tokenizer, prompts, params, seeds)
            for episode, response in zip(forks, said, strict=True):
                episode.respond(torch.tensor(response.tokens))
            tokens += sum(len(response.tokens) for response in said)
            episodes += forks
        return episodes, tokens / len(starts)


def given(
    env: TextGenerationEnv, tokenizer: Any, answers: Sequence[tuple[int, str]]
) -> list[TextGenerationEnv]:
    """Episodes finished with these texts, as (starting state, response)."""
    episodes = [env.fork() for _ in answers]
    for episode, (start, text) in zip(episodes, answers, strict=True):
        episode.reset(start)
        episode.respond(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return episodes


def score(env: TextGenerationEnv, episodes: Sequence[TextGenerationEnv]) -> tuple[float, float]:
    """Seconds, and the share of answers that are right."""
    began = time.perf_counter()
    scored = env.score(episodes)
    seconds = time.perf_counter() - began
    return seconds, sum(metrics["correct"] for _, metrics in scored) / len(scored)


def formulas(tokenizer: Any, count: int) -> tuple[MathEnv, list[tuple[int, str]]]:
    """Problems whose answers are formulas, and right answers that are written otherwise."""
    answers = {
        f"$\\frac{{x^{{{i}}}}}{{7}}$": f"It is as asked.\n#### $x^{{{i}}}/7$"
        for i in range(2, count + 2)
    }
    asked = [
        {"question": f"Question {i}", "answer": f"#### {answer}"}
        for i, answer in enumerate(answers)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "formulas.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
        env = MathEnv(tokenizer, path=str(path), num_held_out=0, reasoning=True)
    return env, [(i, answers[p.metadata["answer"]]) for i, p in enumerate(env.prompts)]


def programs(env: CodeGenerationEnv, starts: Sequence[int]) -> list[tuple[int, str]]:
    """The project's own solutions of these problems, told apart by a comment."""
    solutions = {row["name"]: row["solution"] for _, row in read_rows(OWN_PROBLEMS)}
    return [
        (start, f"```python\n# {i}\n{solutions[env.prompts[start].metadata['name']]}```")
        for i, start in enumerate(starts)
    ]


def maths_rows(model: Model, count: int, tokens: int) -> list[tuple[str, ...]]:
    env = MathEnv(model.tokenizer, num_held_out=0)
    starts = list(islice(cycle(range(len(env))), count))
    began = time.perf_counter()
    episodes, length = model.answer(env, starts, tokens)
    generating = time.perf_counter() - began
    hard, answers = formulas(model.tokenizer, count)
    return [
        row("maths, sampled", count, length, generating, *score(env, episodes)),
        row(
            "maths, formulas for math-verify",
            count,
            length,
            generating,
            *score(hard, given(hard, model.tokenizer, answers)),
        ),
    ]


def code_rows(model: Model, count: int, tokens: int) -> list[tuple[str, ...]]:
    env = CodeGenerationEnv(model.tokenizer)
    names = [prompt.metadata["name"] for prompt in env.prompts]
    fitting = [i for i, name in enumerate(names) if len(env.problems[name].tests) == TESTS]
    assert fitting, f"none of the project's problems has {TESTS} hidden tests"
    starts = list(islice(cycle(fitting), count))
    began = time.perf_counter()
    episodes, length = model.answer(env, starts, tokens)
    generating = time.perf_counter() - began
    right = given(env, model.tokenizer, programs(env, starts))
    return [
        row("code, sampled", count, length, generating, *score(env, episodes)),
        row("code, right programs", count, length, generating, *score(env, right)),
    ]


def row(
    what: str, count: int, length: float, generating: float, scoring: float, right: float
) -> tuple[str, ...]:
    return (
        f"{count} {what}",
        f"{length:.1f}",
        f"{generating:.2f}",
        f"{scoring:.2f}",
        f"{scoring / generating:.3f}",
        f"{right:.0%}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint folder; default: the embedded model")
    parser.add_argument("--maths", type=int, default=512, help="answers")
    parser.add_argument("--code", type=int, default=64, help="answers")
    parser.add_argument("--maths-tokens", type=int, default=24, help="most of an answer")
    parser.add_argument("--code-tokens", type=int, default=128, help="most of an answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "2")))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = ModelConfig(name=str(model_folder(args.model)), dtype="bfloat16")
    model = Model(load_model(config).eval(), load_tokenizer(config), args.seed)
    rows = maths_rows(model, args.maths, args.maths_tokens)
    rows += code_rows(model, args.code, args.code_tokens)
    print("| answers | tokens, sampled | s to generate | s to score | score / generate | right |")
    print("|---|---:|---:|---:|---:|---:|")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
