"""Runs a training side by side with TRL and prints a table.

Each round starts TRL (a script of `peers/`, in an environment of its own) and then ours (in this
one) as separate processes with the same arguments, so that a machine whose speed drifts treats
both alike; ratios are taken within a round. Each prints one JSON line.

- `ppo`: against TRL 1.12.0, the last release with PPO. A row holds side, version, seconds (one an
  iteration), episodes_per_iteration, peak_gib, response_tokens, notes.
- `dpo`, `reward`, `sft`: against TRL 1.16.0; see `compare_pairs.py`.
- `grpo`, `distill`: against TRL 1.16.0; see `compare_grpo.py`.
- `grpo`, `dpo`, `reward` with `--learn`: not how fast a step is, but what is learned in equal steps
  and after how many seconds; see `compare_learning.py`.

    python benchmarks/compare_trl.py ppo
    python benchmarks/compare_trl.py ppo --only trl --rounds 1 --model DIR --json rows.json
    python benchmarks/compare_trl.py dpo
    python benchmarks/compare_trl.py reward --pairs pairs.jsonl
    python benchmarks/compare_trl.py grpo --prompts gsm8k_train.jsonl
    python benchmarks/compare_trl.py distill
    python benchmarks/compare_trl.py grpo --learn
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import compare_grpo
import compare_learning
import compare_pairs
from side_by_side import (
    HERE,
    SIDES,
    Comparison,
    Row,
    add_mode,
    alternate,
    both_sides,
    call_helper,
    disturbed,
    log,
    others_cores,
    said_mode,
    spread,
)

PPO_TRL_VERSION = "1.12.0"


def paired_ratios(rows: list[Row]) -> list[float]:
    """TRL's median seconds over ours, for each round that has both."""
    return [median(trl["seconds"]) / median(ours["seconds"]) for trl, ours in both_sides(rows)]


def ppo_table(rows: list[Row], limit: dict[str, dict[str, float]]) -> str:
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
        lines.append(
            f"| {side} {mine[0]['version']} | {spread(seconds)} | {rate:.2f} | {peak:.2f} "
            f"| {tokens:.1f} | {others_cores(mine)} |"
        )
        bounds = limit[side]
        summary.append(
            f"- {side}: time / limit {median(seconds) / bounds['total_products']:.2f} "
            f"(limit {bounds['total_products']:.2f} s: bare products), "
            f"{median(seconds) / bounds['total_bandwidth']:.2f} "
            f"({bounds['total_bandwidth']:.2f} s: decoding at memory bandwidth)"
        )
        summary += [f"- {side}: {note}" for note in mine[0].get("notes", [])]
    ratios = paired_ratios(rows)
    paired = [f"- **TRL / ours, paired rounds: {spread(ratios)}**"] if ratios else []
    return "\n".join([*lines, "", *paired, *disturbed(rows), *summary])


def ppo(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """PPO from one checkpoint with one random reward model: the table, and what it is made of."""
    comparison = Comparison(
        PPO_TRL_VERSION,
        scripts={"trl": HERE / "peers" / "trl_ppo.py", "ours": HERE / "ours_ppo.py"},
        arguments={
            "trl": ["--dtype", args.trl_dtype, "--attention", args.trl_attention],
            "ours": said_mode(args),
        },
    )
    count = str(args.episodes * (args.warmup + args.iterations))
    chosen = ["--model", args.model] if args.model else []
    made = call_helper(comparison, args, [str(HERE / "inputs.py"), "--count", count, *chosen])
    sizes = [f"--{name}={getattr(args, name)}" for name in ("episodes", "epochs", "minibatch")]
    sizes.append(f"--response-length={args.response_length}")
    shared = [f"--model={made['model']}", f"--reward-model={made['reward_model']}"]
    shared += [f"--prompts={made['prompts']}", *sizes]
    shared += [f"--iterations={args.iterations}", f"--warmup={args.warmup}"]
    rows = alternate(comparison, shared, args)

    log("limits of the machine")
    limit = {}
    for side, critics in (("trl", 1), ("ours", 0)):  # TRL's critic is a network of its own
        if args.only in (None, side):
            command = [str(HERE / "limits.py"), f"--model={made['model']}", "--json", *sizes]
            command += [f"--prompt-length={round(made['prompt_tokens_mean'])}"]
            command += [f"--critic-networks={critics}", f"--dtype={args.limit_dtype}"]
            command += [f"--threads={args.threads}"]
            limit[side] = call_helper(comparison, args, command)
    return ppo_table(rows, limit), {"rows": rows, "limits": limit}


def add_ppo(command: argparse.ArgumentParser) -> None:
    command.add_argument("--iterations", type=int, default=3, help="timed iterations a round")
    command.add_argument("--warmup", type=int, default=1, help="iterations before them")
    command.add_argument("--episodes", type=int, default=16)
    command.add_argument("--response-length", type=int, default=48)
    command.add_argument("--epochs", type=int, default=4)
    command.add_argument("--minibatch", type=int, default=4)
    command.add_argument("--trl-dtype", default="bfloat16", choices=["bfloat16", "float32"])
    command.add_argument("--trl-attention", default="sdpa", choices=["sdpa", "eager"])
    command.add_argument("--limit-dtype", default="bfloat16", choices=["bfloat16", "float32"])
    add_mode(command)
    command.set_defaults(compare=ppo)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    kinds = {
        "ppo": ("PPO with a critic, full fine-tuning", add_ppo),
        "dpo": ("DPO, full fine-tuning", compare_pairs.add_arguments),
        "reward": ("a Bradley-Terry reward model, full fine-tuning", compare_pairs.add_arguments),
        "sft": ("SFT, full fine-tuning", compare_pairs.add_arguments),
        "grpo": ("GRPO, full fine-tuning", compare_grpo.add_arguments),
        "distill": ("distillation, full fine-tuning", compare_grpo.add_distillation),
    }
    if "--learn" in sys.argv[1:]:  # other options then; argparse refuses those that nothing reads
        learning = {name: partial(compare_learning.add_arguments, task=name) for name in kinds}
        del kinds["ppo"], kinds["sft"], kinds["distill"]
        kinds = {name: (described, learning[name]) for name, (described, _) in kinds.items()}
    for name, (described, add) in kinds.items():
        command = commands.add_parser(name, help=described)
        command.add_argument("--model", help="checkpoint folder; default: the embedded model")
        command.add_argument("--rounds", type=int, default=3)
        add(command)
        command.add_argument(
            "--seed", type=int, default=0, help="of the first round; then one more"
        )
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--only", choices=SIDES, help="run one side")
        command.add_argument("--json", type=Path, help="file for the raw rows")
    return parser.parse_args()


def main() -> None:
    args = parse()
    table, raw = args.compare(args)
    print(table)
    if args.json:
        settings = {key: v for key, v in vars(args).items() if key not in ("json", "compare")}
        text = json.dumps({"settings": settings, **raw}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
