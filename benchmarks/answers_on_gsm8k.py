"""False verdicts of ``is_correct`` on files of GSM8K (Cobbe et al. 2021, arXiv:2110.14168).

Each row's published solution is an answer to it, and so is its final answer in each form in which
models claim one. Wrong answers are made of the same row: the final answer and one, its negative,
its thousandfold, the last other number of the solution; and the final answer of the next row.

    PYTHONPATH=. python benchmarks/answers_on_gsm8k.py gsm8k_train.jsonl gsm8k_test.jsonl
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from datamodules import is_correct

MARK = "####"
FORMS = (
    "{}",
    "#### {}",
    "\\boxed{{{}}}",
    "The answer is {}.",
    "**Answer:** ${}",
    "So it is $\\boxed{{{}}}$ in all.",
    "<think>Is it 1, or 2?</think>\nThe final answer is {} apples.",
    "x = {}",
    "Answer: {}, because 1 + 1 = 2.",
)
SHOWN = 5
"""False verdicts of a kind that are printed."""


def wrong_answers(solution: str, gold: str, other: str) -> Iterator[str]:
    """Answers that are not ``gold``, as text."""
    value = Fraction(gold.replace(",", ""))
    numbers = re.findall(r"\d+(?:\.\d+)?", solution.rpartition(MARK)[0].replace(",", ""))
    made = [value + 1, -value, value * 1000, *(Fraction(n) for n in reversed(numbers))]
    different = [n for n in made if n not in (value, value / 100, value * 100)]
    for number in different[:4]:
        yield str(number) if number.denominator == 1 else f"{float(number):.12g}"
    if Fraction(other.replace(",", "")) not in (value, value / 100, value * 100):
        yield other


def verdicts(rows: list[dict[str, str]]) -> Iterator[tuple[str, bool, str, str]]:
    """What kind of answer, whether it is right, the answer, and the expected one."""
    golds = [row["answer"].rpartition(MARK)[2].strip() for row in rows]
    for index, (row, gold) in enumerate(zip(rows, golds, strict=True)):
        yield "published solution", True, row["answer"], gold
        yield "solution without calculator marks", True, re.sub("<<.*?>>", "", row["answer"]), gold
        for form in FORMS:
            yield "final answer in a form", True, form.format(gold), gold
        yield "a thought that did not end", False, f"<think>{row['answer']}", gold
        yield "two answers", False, f"Answer: {gold} or {golds[index - 1]}1", gold
        for wrong in wrong_answers(row["answer"], gold, golds[index - 1]):
            solution = row["answer"].rpartition(MARK)[0]
            yield "wrong final answer", False, f"{solution}{MARK} {wrong}", gold
            yield "wrong answer in a form", False, FORMS[index % len(FORMS)].format(wrong), gold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON lines of question and answer")
    args = parser.parse_args()
    rows = [
        json.loads(line)
        for path in args.files
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    tried: Counter[tuple[str, bool]] = Counter()
    false: Counter[tuple[str, bool]] = Counter()
    began = time.perf_counter()
    for kind, right, response, gold in verdicts(rows):
        tried[kind, right] += 1
        if is_correct(response, gold) is not right:
            false[kind, right] += 1
            if false[kind, right] <= SHOWN:
                print(f"{'refused' if right else 'paid'}: {response[-150:]!r} for {gold!r}")
    seconds = time.perf_counter() - began
    print(f"{len(rows)} rows, {sum(tried.values())} verdicts in {seconds:.1f} s")
    print("| answers | verdicts | falsely refused | falsely paid |\n|---|---:|---:|---:|")
    for (kind, right), count in tried.items():
        wrong = false[kind, right]
        print(f"| {kind} | {count} | {wrong if right else ''} | {'' if right else wrong} |")


if __name__ == "__main__":
    main()
