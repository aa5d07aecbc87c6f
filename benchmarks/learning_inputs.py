"""What both sides of `compare_trl.py ... --learn` are given: questions or pairs, made once.

Questions are the generated problems of `algo=grpo`'s default run, in an order of the seed; pairs
are what `task=collect_preferences` writes of answers to them. No problem is both held out and
trained on. Run as a program it prints the `LearningInputs` as one JSON line.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from inputs import CACHE, ROOT, model_folder

DIFFICULTY = 1
HELD_OUT = 200
"""Problems: as in `env=math`."""
ANSWERS = 16
"""Sampled to each problem, for pairs."""
WEIGHTS = "{correctness: 1.0, formatting: 0.0}"
"""Were form paid for, pairs would be numbers against texts that are none: four steps teach that."""
EVALUATED_AT_ONCE = 4
"""Held-out pairs come in whole batches of this size: TRL's accuracy is a mean over batches."""

Row = dict[str, str]


@dataclass(frozen=True)
class LearningInputs:
    """Paths that both sides receive, and how many rows each holds."""

    model: str
    train: str
    held_out: str
    rows: int
    judged: int


def problems() -> tuple[list[Row], list[Row]]:
    """Training and held-out questions with their answers."""
    from datamodules.environments.math_problems import generate
    from datamodules.environments.maths import ask

    splits = generate(DIFFICULTY, None, HELD_OUT, seed=0)
    train, held_out = (
        [
            {"prompt": str(ask(p.question, reasoning=False, chat=False)), "answer": str(p.answer)}
            for p in split
        ]
        for split in splits
    )
    return train, held_out


def in_passes(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` of `rows`: pass after pass over all, each in an order of its own."""
    rng = random.Random(seed)
    taken: list[Row] = []
    while len(taken) < count:
        taken += rng.sample(rows, len(rows))
    return taken[:count]


def collect(model: Path, cache: Path) -> list[Row]:
    """The pairs of `task=collect_preferences`, of answers to all problems; sampled once a model."""
    made_by = f"{model} {DIFFICULTY} {ANSWERS} {WEIGHTS}".encode()
    known = hashlib.sha256(made_by + (model / "config.json").read_bytes())
    path = cache / f"learning-pairs-{known.hexdigest()[:8]}.jsonl"
    done = path.with_suffix(".done")
    if not done.is_file():
        command = [sys.executable, str(ROOT / "train.py"), "task=collect_preferences", "algo=grpo"]
        command += [f"model.name={model}", "env=math", "env.num_held_out=0", "seed=0"]
        command += [f"env.difficulty={DIFFICULTY}", f"env.reward_weights={WEIGHTS}"]
        command += [f"task.num_generations={ANSWERS}", "task.max_pairs=2"]
        command += [f"out={path}", "logger=none", f"hydra.run.dir={cache / 'collect'}"]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT)
        done.touch()  # until then it is gone on with
    lines = path.read_text(encoding="utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in read]


def split_pairs(pairs: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Those of training problems, and those of held-out ones; no problem is in both."""
    train, held_out = ({row["prompt"] for row in rows} for rows in problems())
    judged = [pair for pair in pairs if pair["prompt"] in held_out]
    return [pair for pair in pairs if pair["prompt"] in train], judged


def write(kind: str, rows: Sequence[Row], cache: Path) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = cache / f"learning-{kind}-{digest}-{len(rows)}.jsonl"
    path.write_text(text, encoding="utf-8")
    return str(path)


def make_inputs(
    task: str,
    model: str | None,
    *,
    batch: int,
    steps: int,
    judged: int,
    seed: int,
    cache: Path = CACHE,
) -> LearningInputs:
    """Questions for `steps` optimizer steps of `batch`, or all pairs that fill whole batches.

    Raises:
        ValueError: there are not enough pairs for a batch, or to judge by.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder = model_folder(model)
    if task == "grpo":
        every, held_out = problems()
        train = in_passes(every, batch * steps, seed)
    else:
        train, held_out = split_pairs(collect(folder, cache))
        train = train[: len(train) // batch * batch]
    held_out = held_out[:judged]
    held_out = held_out[: len(held_out) // EVALUATED_AT_ONCE * EVALUATED_AT_ONCE]
    if not train or not held_out:
        raise ValueError(f"{len(train)} rows to train on and {len(held_out)} held out: too few")
    return LearningInputs(
        model=str(folder),
        train=write("train", train, cache),
        held_out=write("held-out", held_out, cache),
        rows=len(train),
        judged=len(held_out),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, choices=["grpo", "dpo", "reward"])
    parser.add_argument("--model")
    parser.add_argument("--batch", type=int, required=True, help="rows an optimizer step")
    parser.add_argument("--steps", type=int, default=1, help="of optimizer; of questions only")
    parser.add_argument("--judged", type=int, default=HELD_OUT, help="held-out rows, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    print(json.dumps(asdict(make_inputs(options.pop("task"), options.pop("model"), **options))))
