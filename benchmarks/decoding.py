"""Milliseconds a token while texts are sampled: attention and weights as they lie, and as we do it.

The embedded model in bfloat16, short prompts of several lengths; nothing ends a text.

    PYTHONPATH=. python benchmarks/decoding.py
    PYTHONPATH=. python benchmarks/decoding.py --rows 16 --profile
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from datamodules.types import SamplingParams
from rlmodules.models import ModelConfig, PolicyModel, attention, embedded_model_dir, load_model
from rlmodules.sampling import decoding


def milliseconds(policy: PolicyModel, rows: int, prompt: int, tokens: int) -> float:
    """A token of all rows, the mean of the steps after the first."""
    drawn = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(5, 40_000, (prompt + row % 5,), generator=drawn) for row in range(rows)
    ]
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


@contextmanager
def eager_attention() -> Iterator[None]:
    with patch.object(attention, "_is_plain", lambda module: False), as_they_lie():
        yield


@contextmanager
def as_they_lie() -> Iterator[None]:
    with patch.object(decoding, "REORDERED_ROWS", 0):  # rows that have copies, at most
        yield


WAYS = {
    "eager attention, ms a token": eager_attention,
    "by ours": as_they_lie,
    "and weights in the order of products": nullcontext,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 32, 64])
    parser.add_argument("--prompt", type=int, default=6, help="tokens of the shortest")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="the operators of one repeat")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(ModelConfig(name=str(embedded_model_dir()), dtype="bfloat16"))
    policy = PolicyModel(model)
    policy.enable_packing()
    print(f"| rows | {' | '.join(WAYS)} |\n|---:{'|---:' * len(WAYS)}|")
    for rows in args.rows:
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(args.repeats):
            for name, way in WAYS.items():
                with way():
                    times[name].append(milliseconds(policy, rows, args.prompt, args.tokens))
        found = [f"{median(ms):.1f} ({min(ms):.1f}-{max(ms):.1f})" for ms in times.values()]
        print(f"| {rows} | {' | '.join(found)} |", flush=True)
        if args.profile:
            with profile(activities=[ProfilerActivity.CPU]) as watched:
                milliseconds(policy, rows, args.prompt, args.tokens)
            print(watched.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


if __name__ == "__main__":
    main()
