"""What both sides of `compare_trl.py ... --learn` share: what they are told, how they are judged.

TRL's side reads this file in an environment of its own, so it imports nothing of ours.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

NUMBER = re.compile(r"-?\d+")
END_OF_LINE = "\n"
"""What ends an answer, besides the model's own end tokens."""
ANSWERED_AT_ONCE = 50


class Course:
    """What was learned after how many seconds of training; looking at it is not counted.

    Attributes:
        looks: one a look: `step`, `seconds` of training before it, and `right`, how many of what is
            held out (a tie is half right where the side counts it so).
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.looks: list[dict[str, float]] = []
        self._clock = clock
        self._began: float | None = None
        self._aside = 0.0
        self._paused = 0.0

    def start(self) -> None:
        """Training begins."""
        self._began = self._clock()

    def pause(self) -> None:
        """A look begins."""
        self._paused = self._clock()

    def resume(self, step: int, right: float) -> None:
        """It ends, with `right` found after `step` optimizer steps; noted once a step."""
        seconds = 0.0 if self._began is None else self._paused - self._began - self._aside
        if not self.looks or self.looks[-1]["step"] != step:
            self.looks.append({"step": step, "seconds": seconds, "right": right})
        if self._began is not None:
            self._aside += self._clock() - self._paused


def rows(path: Path) -> list[dict[str, str]]:
    """Of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def is_right(response: str, answer: str) -> bool:
    """Whether the last number of the first line is the answer."""
    numbers = NUMBER.findall(response.split(END_OF_LINE, 1)[0])
    return bool(numbers) and int(numbers[-1]) == int(answer)


def reward(response: str, answer: str) -> float:
    """That of `env=math`, in short: 1 for the answer, and 0.1 for a line that is a number alone."""
    line = response.split(END_OF_LINE, 1)[0].strip()
    return is_right(response, answer) + 0.1 * bool(NUMBER.fullmatch(line))


def ending_tokens(tokenizer: Any) -> list[int]:
    """Tokens that end a line, and the end token: for `generate`, which knows no stop strings."""
    every = range(len(tokenizer))
    ending = [token for token in every if END_OF_LINE in tokenizer.decode([token])]
    return [tokenizer.eos_token_id, *ending]


def count_right(
    model: Any, tokenizer: Any, asked: Sequence[dict[str, str]], max_new_tokens: int
) -> int:
    """How many questions the model answers rightly, taking the likeliest token each time."""
    was_training, right = model.training, 0
    model.eval()
    ends, pad = ending_tokens(tokenizer), tokenizer.eos_token_id
    for first in range(0, len(asked), ANSWERED_AT_ONCE):
        some = asked[first : first + ANSWERED_AT_ONCE]
        ids = [tokenizer(row["prompt"])["input_ids"] for row in some]
        longest = max(map(len, ids))
        padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        with torch.no_grad():
            made = model.generate(
                input_ids=padded,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends,
                pad_token_id=pad,
            )
        texts = tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
        right += sum(is_right(text, row["answer"]) for text, row in zip(texts, some, strict=True))
    model.train(was_training)
    return right


def arguments(description: str) -> argparse.ArgumentParser:
    """What both sides are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--task", required=True, choices=["grpo", "dpo", "reward"])
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--train", required=True, type=Path, help="JSONL: questions, or pairs")
    parser.add_argument("--held-out", required=True, type=Path, help="JSONL of the same kind")
    parser.add_argument("--passes", type=int, default=1, help="over the pairs; questions: 1")
    parser.add_argument("--batch", type=int, required=True, help="rows an optimizer step")
    parser.add_argument("--generations", type=int, default=8, help="responses to each question")
    parser.add_argument("--backward", type=int, default=128, help="responses a backward pass")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    parser.add_argument("--look-every", type=int, required=True, help="optimizer steps")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--precision", required=True, choices=["bf16-mixed", "32-true"])
    parser.add_argument("--seed", type=int, default=0)
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    parser.add_argument("--threads", type=int, default=threads)
    return parser
