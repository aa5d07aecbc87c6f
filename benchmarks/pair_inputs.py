"""What both sides of `dpo` and `reward` read: checkpoint and pairs, chosen once.

Run as a program it prints the `PairInputs` as one JSON line; a process of its own, so that the
driver stays small (see `inputs.py`).
"""

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inputs import CACHE, model_folder

COLUMNS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PairInputs:
    """Paths that both sides receive."""

    model: str
    pairs: str
    left_out: int
    """Pairs that were passed over because they are longer than `max_length` tokens."""


def read(path: str) -> list[dict[str, str]]:
    """The pairs of a JSONL file, in its order, nothing but their three texts.

    Raises:
        ValueError: a row lacks one, or it is no text.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        rows.append({name: row.get(name) for name in COLUMNS})
        if not all(isinstance(text, str) for text in rows[-1].values()):
            raise ValueError(f"{path}, line {number}: prompt, chosen and rejected must be texts")
    return rows


def fitting(rows: list[dict[str, str]], tokenizer: Any, max_length: int) -> list[dict[str, str]]:
    """The pairs that nobody has to cut: TRL's `RewardTrainer` drops longer ones, the rest cut."""
    texts = [row["prompt"] + row[side] for row in rows for side in COLUMNS[1:]]
    lengths = [len(ids) + 1 for ids in tokenizer(texts)["input_ids"]]  # 1: the end token
    longest = map(max, zip(lengths[::2], lengths[1::2], strict=True))
    return [row for row, length in zip(rows, longest, strict=True) if length <= max_length]


def write(rows: list[dict[str, str]], cache: Path) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = cache / f"pairs-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{len(rows)}.jsonl"
    path.write_text(text, encoding="utf-8")
    return str(path)


def make_inputs(
    model: str | None,
    pairs: str,
    count: int,
    max_length: int,
    cache: Path = CACHE,
) -> PairInputs:
    """The first `count` pairs that fit, from the start again when there are fewer.

    Raises:
        ValueError: no pair fits.
    """
    from transformers import AutoTokenizer

    cache.mkdir(parents=True, exist_ok=True)
    folder = model_folder(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    every = read(pairs)
    rows = fitting(every, tokenizer, max_length)
    if not rows:
        raise ValueError(f"{pairs}: no pair has at most {max_length} tokens")
    return PairInputs(
        model=str(folder),
        pairs=write([rows[index % len(rows)] for index in range(count)], cache),
        left_out=len(every) - len(rows),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--count", type=int, required=True, help="pairs to train on")
    parser.add_argument("--max-length", type=int, default=512)
    options = parser.parse_args()
    made = make_inputs(options.model, options.pairs, options.count, options.max_length)
    print(json.dumps(asdict(made)))
