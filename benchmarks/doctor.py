"""What `task=doctor` takes, and its figures on healthy models, which its limits are set by.

PYTHONPATH=. python benchmarks/doctor.py                           # each algorithm and model
PYTHONPATH=. python benchmarks/doctor.py --algos ppo dpo --models smollm2 --rounds 2 -- seed=1
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ALGOS = ("ppo", "grpo", "dpo", "reward", "sft")


def looked_at(*overrides: str) -> tuple[list[dict[str, Any]], float, float]:
    """The checks of one run, its seconds, and the processor's."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "task=doctor", "out=found.json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        ended = subprocess.run([*command, *overrides], cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = Path(folder) / "found.json"
        if not found.is_file():
            sys.exit(f"{' '.join(overrides)}:\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
        spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
        return json.loads(found.read_text()), seconds, spent


def shown(check: dict[str, Any], name: str) -> str:
    value = check[name]
    return "-" if value is None else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--algos", nargs="+", default=ALGOS)
    parser.add_argument("--models", nargs="+", default=("tiny", "smollm2"))
    parser.add_argument("--precisions", nargs="+", default=("bf16-mixed", "bf16-true", "32-true"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="of each run, behind --")
    args = parser.parse_args()
    runs = [(a, m, p) for p in args.precisions for m in args.models for a in args.algos]
    for algo, model, precision in runs * args.rounds:
        overrides = (f"algo={algo}", f"model={model}", f"trainer.precision={precision}")
        found, seconds, spent = looked_at(*overrides, *args.overrides)
        print(f"{' '.join(overrides)}: {seconds:.0f} s, {spent:.0f} s of processors", flush=True)
        for check in found:
            figure, took = shown(check, "figure"), shown(check, "seconds")
            print(f"  {check['name']:13}{check['status']:8} {figure:>9} {took:>5} s", flush=True)


if __name__ == "__main__":
    main()
