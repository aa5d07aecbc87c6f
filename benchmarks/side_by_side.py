"""What all comparisons with TRL share: its environments, children in alternation, busy cores."""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"
BESIDE_TRL = ("transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")
SIDES = ("trl", "ours")
QUIET = 0.1
"""Cores that others may use. More falsifies: one busy neighbour on two cores cost up to 8 times."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """How each side of a comparison is started."""

    trl_version: str
    scripts: dict[str, Path]
    """By side."""
    arguments: dict[str, Sequence[str]]
    """By side, besides those that both receive."""


def add_mode(parser: argparse.ArgumentParser) -> None:
    """How ours trains. TRL steps bfloat16 weights with AdamW in bfloat16, and so does ours here; by
    itself the library keeps float32 copies, which small updates reach, at 8 bytes more a parameter.
    """
    copies = "ours steps float32 copies of bf16 weights, as by default"
    parser.add_argument("--copies", action="store_true", help=copies)
    parser.add_argument("--compile", action="store_true", help="ours compiles the decoder layers")


def said_mode(args: argparse.Namespace) -> list[str]:
    """``add_mode``'s options as they were given."""
    return [f"--{name}" for name in ("copies", "compile") if getattr(args, name)]


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def trl_python(version: str) -> Path:
    """The interpreter of that TRL's own environment, which is built on first use."""
    folder = HERE / f".venv-trl-{version}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = folder / "ready"
    if not ready.is_file():
        log(f"building {folder} (once)")
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", TORCH]
        subprocess.run(install, check=True, stdout=sys.stderr)  # first: the exact build
        subprocess.run([*install, f"trl=={version}", *BESIDE_TRL], check=True, stdout=sys.stderr)
        ready.touch()
    return python


def environment(threads: int, *, ours: bool) -> dict[str, str]:
    """A child's environment: offline, a fixed thread count, our packages on our side only."""
    variables = dict(os.environ)
    inherited = variables.pop("PYTHONPATH", None)
    if ours:
        paths = [str(HERE.parent)] + ([inherited] if inherited else [])
        variables["PYTHONPATH"] = os.pathsep.join(paths)
    return variables | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def call(command: list[str], variables: dict[str, str]) -> Row:
    """Run a child and return the JSON object on the last line of its output."""
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        problem = f"exit status {done.returncode}" if done.returncode else "no JSON line printed"
        raise RuntimeError(f"{' '.join(command)}: {problem}\n{done.stderr[-4000:]}")
    return json.loads(lines[-1])


def call_helper(comparison: Comparison, args: argparse.Namespace, command: list[str]) -> Row:
    """Run one of our scripts that neither side is: in our environment, or in TRL's if only TRL's
    side is asked for."""
    only = args.only == "trl"
    python = str(trl_python(comparison.trl_version)) if only else sys.executable
    return call([python, *command], environment(args.threads, ours=not only))


def alternate(comparison: Comparison, shared: Sequence[str], args: argparse.Namespace) -> list[Row]:
    """All rounds, the sides in turn within each; a round's seed is its own."""
    sides = [args.only] if args.only else list(SIDES)
    return [
        run_side(comparison, side, shared, args, turn)
        for turn in range(args.rounds)
        for side in sides
    ]


def run_side(
    comparison: Comparison,
    side: str,
    shared: Sequence[str],
    args: argparse.Namespace,
    turn: int,
) -> Row:
    """One process of one side; the row also says how many cores others used meanwhile."""
    ours = side == "ours"
    python = sys.executable if ours else str(trl_python(comparison.trl_version))
    command = [python, str(comparison.scripts[side]), *shared, "--seed", str(args.seed + turn)]
    log(f"round {turn + 1}: {side}")
    wall, busy, used = time.perf_counter(), busy_seconds(), children_seconds()
    variables = environment(args.threads, ours=ours)
    row = call([*command, *comparison.arguments[side]], variables)
    others = None
    if busy is not None:
        elsewhere = busy_seconds() - busy - (children_seconds() - used)
        others = max(0.0, elsewhere / (time.perf_counter() - wall))
    row |= {"round": turn, "other_cores": others}
    log(json.dumps(row))  # a run that is cut short keeps what it has measured
    return row


def busy_seconds() -> float | None:
    """CPU seconds that the whole machine has worked since it started; Linux only."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, soft_irq, steal = map(int, fields[:8])
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# ----------------------------------------------------------------- tables


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range, as `1.50 (1.20-1.90)`."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def others_cores(rows: Sequence[Row]) -> str:
    """Most cores that others used during any of these rows."""
    others = [row["other_cores"] for row in rows if row["other_cores"] is not None]
    return f"{max(others):.2f}" if others else "?"


def disturbed(rows: Sequence[Row]) -> list[str]:
    """A line that says so, if others used the cores meanwhile."""
    if any((row["other_cores"] or 0) > QUIET for row in rows):
        return ["- **Not a measurement: other processes used these cores meanwhile.**"]
    return []


def both_sides(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """TRL's row and ours of every round that has both."""
    rounds: dict[int, dict[str, Row]] = {}
    for row in rows:
        rounds.setdefault(row["round"], {})[row["side"]] = row
    return [(pair["trl"], pair["ours"]) for pair in rounds.values() if len(pair) == len(SIDES)]
