"""Runs a training side by side with TRL 1.12.0, the last release with PPO, and prints a table.

Each round starts TRL (`peers/trl_<name>.py`, in its own environment) and then ours
(`ours_<name>.py`, in this one) as separate processes with the same arguments, so that a machine
whose speed drifts treats both alike; ratios are taken within a round. Both print one JSON line:
side, version, seconds (one an iteration), episodes_per_iteration, peak_gib, response_tokens, notes.

    python benchmarks/compare_trl.py ppo
    python benchmarks/compare_trl.py ppo --only trl --rounds 1 --model DIR --json rows.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
TRL_VERSION = "1.12.0"
TRL_ENVIRONMENT = HERE / f".venv-trl-{TRL_VERSION}"
TRL_NEEDS = (
    f"trl=={TRL_VERSION}",
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "datasets==5.2.0",
)
TORCH = "torch==2.13.0"
SIDES = ("trl", "ours")
QUIET = 0.1
"""Cores that others may use. More falsifies: one busy neighbour on two cores cost up to 8 times."""

Row = dict[str, Any]


def trl_python() -> Path:
    """TRL's own interpreter; its environment is built on first use."""
    python = TRL_ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = TRL_ENVIRONMENT / "ready"
    if not ready.is_file():
        log(f"building {TRL_ENVIRONMENT} (once)")
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(TRL_ENVIRONMENT)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, TORCH], check=True, stdout=sys.stderr)  # first: the exact build
        subprocess.run([*install, TORCH, *TRL_NEEDS], check=True, stdout=sys.stderr)
        ready.touch()
    return python


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


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


def run_side(side: str, name: str, shared: list[str], args: argparse.Namespace, turn: int) -> Row:
    """One process of one side; the row also says how many cores others used meanwhile."""
    ours = side == "ours"
    script = HERE / f"ours_{name}.py" if ours else HERE / "peers" / f"trl_{name}.py"
    python = sys.executable if ours else str(trl_python())
    own = [] if ours else ["--dtype", args.trl_dtype, "--attention", args.trl_attention]
    command = [python, str(script), *shared, "--seed", str(args.seed + turn), *own]
    log(f"round {turn + 1}: {side}")
    wall, busy, used = time.perf_counter(), busy_seconds(), children_seconds()
    row = call(command, environment(args.threads, ours=ours))
    others = None
    if busy is not None:
        elsewhere = busy_seconds() - busy - (children_seconds() - used)
        others = max(0.0, elsewhere / (time.perf_counter() - wall))
    return row | {"round": turn, "other_cores": others}


def alternate(name: str, shared: list[str], args: argparse.Namespace) -> list[Row]:
    """All rounds, the sides in turn within each."""
    sides = [args.only] if args.only else list(SIDES)
    return [
        run_side(side, name, shared, args, turn) for turn in range(args.rounds) for side in sides
    ]


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range, as `1.50 (1.20-1.90)`."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def paired_ratios(rows: list[Row]) -> list[float]:
    """TRL's median seconds over ours, for each round that has both."""
    by_round: dict[int, dict[str, float]] = {}
    for row in rows:
        by_round.setdefault(row["round"], {})[row["side"]] = median(row["seconds"])
    return [both["trl"] / both["ours"] for both in by_round.values() if len(both) == len(SIDES)]


def table(rows: list[Row], limit: dict[str, dict[str, float]]) -> str:
    """The result as markdown."""
    lines = [
        "| side | seconds an iteration | episodes/s | peak GiB | response tokens | others' cores |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    summary = []
    for side in SIDES:
        mine = [row for row in rows if row["side"] == side]
        if not mine:
            continue
        seconds = [value for row in mine for value in row["seconds"]]
        rate = mine[0]["episodes_per_iteration"] / median(seconds)
        peak = max(row["peak_gib"] for row in mine)
        tokens = sum(row["response_tokens"] for row in mine) / len(mine)
        others = [row["other_cores"] for row in mine if row["other_cores"] is not None]
        shown = f"{max(others):.2f}" if others else "?"
        lines.append(
            f"| {side} {mine[0]['version']} | {spread(seconds)} | {rate:.2f} | {peak:.2f} "
            f"| {tokens:.1f} | {shown} |"
        )
        bounds = limit[side]
        summary.append(
            f"- {side}: time / limit {median(seconds) / bounds['total_products']:.2f} "
            f"(limit {bounds['total_products']:.2f} s: bare products), "
            f"{median(seconds) / bounds['total_bandwidth']:.2f} "
            f"({bounds['total_bandwidth']:.2f} s: decoding at memory bandwidth)"
        )
        summary += [f"- {side}: {note}" for note in mine[0].get("notes", [])]
    if any((row["other_cores"] or 0) > QUIET for row in rows):
        summary.insert(0, "- **Not a measurement: other processes used these cores meanwhile.**")
    if ratios := paired_ratios(rows):
        summary.insert(0, f"- **TRL / ours, paired rounds: {spread(ratios)}**")
    return "\n".join([*lines, "", *summary])


def ppo(args: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """PPO from one checkpoint with one random reward model: rows, and the limit of each side."""
    trl_only = args.only == "trl"
    python = str(trl_python()) if trl_only else sys.executable
    variables = environment(args.threads, ours=not trl_only)
    count = str(args.episodes * (args.warmup + args.iterations))
    chosen = ["--model", args.model] if args.model else []
    made = call([python, str(HERE / "inputs.py"), "--count", count, *chosen], variables)
    sizes = [f"--{name}={getattr(args, name)}" for name in ("episodes", "epochs", "minibatch")]
    sizes.append(f"--response-length={args.response_length}")
    shared = [f"--model={made['model']}", f"--reward-model={made['reward_model']}"]
    shared += [f"--prompts={made['prompts']}", *sizes]
    shared += [f"--iterations={args.iterations}", f"--warmup={args.warmup}"]
    rows = alternate("ppo", shared, args)

    log("limits of the machine")
    limit = {}
    for side, critics in (("trl", 1), ("ours", 0)):  # TRL's critic is a network of its own
        if args.only in (None, side):
            command = [python, str(HERE / "limits.py"), f"--model={made['model']}", "--json"]
            command += [f"--prompt-length={round(made['prompt_tokens_mean'])}", *sizes]
            command += [f"--critic-networks={critics}", f"--dtype={args.limit_dtype}"]
            limit[side] = call([*command, f"--threads={args.threads}"], variables)
    return rows, limit


COMPARISONS = {"ppo": ppo}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("ppo", help="PPO with a critic, full fine-tuning")
    command.add_argument("--model", help="checkpoint folder; default: the embedded model")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--iterations", type=int, default=3, help="timed iterations a round")
    command.add_argument("--warmup", type=int, default=1, help="iterations before them")
    command.add_argument("--episodes", type=int, default=16)
    command.add_argument("--response-length", type=int, default=48)
    command.add_argument("--epochs", type=int, default=4)
    command.add_argument("--minibatch", type=int, default=4)
    command.add_argument("--seed", type=int, default=0, help="of the first round; then one more")
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--only", choices=SIDES, help="run one side")
    command.add_argument("--trl-dtype", default="bfloat16", choices=["bfloat16", "float32"])
    command.add_argument("--trl-attention", default="sdpa", choices=["sdpa", "eager"])
    command.add_argument("--limit-dtype", default="bfloat16", choices=["bfloat16", "float32"])
    command.add_argument("--json", type=Path, help="file for the raw rows")
    return parser.parse_args()


def main() -> None:
    args = parse()
    rows, limit = COMPARISONS[args.command](args)
    print(table(rows, limit))
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        raw = {"settings": settings, "rows": rows, "limits": limit}
        args.json.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
