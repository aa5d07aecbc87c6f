"""Reads what ``callbacks/token_record.py`` kept of single tokens."""

import json
from pathlib import Path
from typing import Any

TOKENS = "tokens"
BUDGET = 2_500_000
"""Characters of tokens that a page carries."""
COLUMNS = {
    # name: (label, what it is, whether it has a middle at 0 (or at 1: ratios))
    "advantage": ("advantage", "what the loss weighs the token by", 0),
    "reward": ("reward", "paid by the environment, on the last token of a response", 0),
    "shaped": ("reward with KL penalty", "what returns are made of", 0),
    "kl": ("KL", "log-probability under the policy less that under the reference, in nats", 0),
    "value": ("value", "the critic's guess at the return", None),
    "return": ("return", "what the critic should have guessed", None),
    "ratio": ("ratio", "probability after the iteration's updates over that when sampled", 1),
    "entropy": ("entropy", "of the distribution after the updates, in nats", None),
    "logprob": ("log-probability", "when it was sampled, in nats", None),
    "mask": ("learned from", "1 where the token is learned from", None),
}


def read_tokens(folder: Path, budget: int = BUDGET) -> tuple[list[dict[str, Any]], int]:
    """Iterations that fit into ``budget`` characters, evenly spaced, and how many there are.

    The first and the last are always among them; a file that cannot be read is passed by.
    """
    paths = sorted((folder / TOKENS).glob("iteration-*.json"))
    size = sum(path.stat().st_size for path in paths)
    most = len(paths) if size <= budget else max(2, int(len(paths) * budget / size))
    step = (len(paths) - 1) / (most - 1) if most > 1 else 0
    taken = [paths[round(i * step)] for i in range(most)] if paths else []
    return [told for path in taken if (told := _read(path)) is not None], len(paths)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:
        return None
