"""Milliseconds a token while texts are sampled: weights in the order of the products, and not.

The embedded model in bfloat16, short prompts of several lengths; nothing ends a text.

    PYTHONPATH=. python benchmarks/decoding.py
    PYTHONPATH=. python benchmarks/decoding.py --rows 16 --profile
"""

import argparse
import time
from statistics import median
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from datamodules.types import SamplingParams
from rlmodules.models import ModelConfig, PolicyModel, embedded_model_dir, load_model
from rlmodules.sampling import decoding


def milliseconds(policy: PolicyModel, rows: int, tokens: int) -> float:
    """A token of all rows, the mean of the steps after the first."""
    drawn = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 40_000, (6 + row % 5,), generator=drawn) for row in range(rows)]
    going = decoding.Decoding(policy, None)
    going.end_ids = frozenset()
    going.admit(
        prompts, [SamplingParams(max_new_tokens=tokens, temperature=0.7)] * rows, range(rows)
    )
    going.step()
    began, steps = time.perf_counter(), 0
    while going.rows:
        going.step()
        steps += 1
    return (time.perf_counter() - began) / steps * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="the operators of one repeat")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(ModelConfig(name=str(embedded_model_dir()), dtype="bfloat16"))
    policy = PolicyModel(model)
    print("| rows | as they lie, ms a token | in the order of products |\n|---:|---:|---:|")
    for rows in args.rows:
        found = {}
        for most in (0, decoding.REORDERED_ROWS):  # rows that have copies, at most
            with patch.object(decoding, "REORDERED_ROWS", most):
                times = [milliseconds(policy, rows, args.tokens) for _ in range(args.repeats)]
            found[most] = f"{median(times):.1f} ({min(times):.1f}-{max(times):.1f})"
        print(f"| {rows} | {' | '.join(found.values())} |", flush=True)
        if args.profile:
            with profile(activities=[ProfilerActivity.CPU]) as watched:
                milliseconds(policy, rows, args.tokens)
            print(watched.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


if __name__ == "__main__":
    main()
