"""`compare_trl.py dpo`, `reward`, `sft`: training on pairs side by side with TRL 1.16.0.

Both sides train the same checkpoint (bfloat16 weights, all of them) on the same set of pairs, one
optimizer step a batch; SFT trains on the chosen side alone. A row holds, besides side, version,
notes and peak_gib: seconds and losses
(one a timed optimizer step); pairs_per_step; tokens_per_pair, the mean of the tokens of prompt and
chosen together with those of prompt and rejected, without padding; and of each timed step
- tokens: such tokens of its pairs,
- computed_tokens: what the layers compute (TRL: with padding; ours: shared prefixes once),
- predictions: positions that reach the vocabulary (none for a reward model).

Steps hold pairs of different lengths, and ours sorts them: its steps differ more, and its timed
ones are not the same pairs as TRL's. So pairs/s are pairs of the mean length of all: the tokens of
the timed steps over their seconds, over `tokens_per_pair`.
"""

import argparse
from statistics import mean
from typing import Any

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

TRL_VERSION = "1.16.0"
TRAINING_PAIRS = HERE.parent / "datamodules" / "assets" / "preferences_train.jsonl"
LEARNING_RATES = {"dpo": 1e-5, "reward": 2e-5, "sft": 2e-5}
"""As in our `conf/algo`, or TRL's default."""


def pairs_per_second(row: Row) -> float:
    """Of pairs of the mean length."""
    return sum(row["tokens"]) / sum(row["seconds"]) / row["tokens_per_pair"]


def table(rows: list[Row], limit: dict[str, dict[str, float]]) -> str:
    """The result as markdown."""
    lines = [
        "| side | seconds a step | pairs/s | peak GiB | others' cores |",
        "|---|---:|---:|---:|---:|",
    ]
    summary = []
    for side in SIDES:
        mine = [row for row in rows if row["side"] == side]
        if not mine:
            continue
        seconds = [value for row in mine for value in row["seconds"]]
        lines.append(
            f"| {side} {mine[0]['version']} | {spread(seconds)} "
            f"| {spread([pairs_per_second(row) for row in mine])} "
            f"| {max(row['peak_gib'] for row in mine):.2f} | {others_cores(mine)} |"
        )
        bound = limit[side]
        summary.append(
            f"- {side}: time / limit {mean(seconds) / bound['total']:.2f} (limit"
            f" {bound['total']:.2f} s a step: bare products of {bound['tokens']} computed tokens"
            f" and {bound['predictions']} predictions, {bound['tflops']:.2f} TFLOP/s)"
        )
        summary += [f"- {side}: {note}" for note in mine[0]["notes"]]
    both = both_sides(rows)
    paired = []
    if both:
        faster = [pairs_per_second(ours) / pairs_per_second(trl) for trl, ours in both]
        smaller = [trl["peak_gib"] / ours["peak_gib"] for trl, ours in both]
        paired = [
            f"- **pairs/s, ours / TRL, paired rounds: {spread(faster)}**",
            f"- **peak memory, TRL / ours, paired rounds: {spread(smaller)}**",
        ]
    return "\n".join([*lines, "", *paired, *disturbed(rows), *summary])


def compare(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The table, and what it is made of."""
    task = args.command
    comparison = Comparison(
        TRL_VERSION,
        scripts={"trl": HERE / "peers" / "trl_pairs.py", "ours": HERE / "ours_pairs.py"},
        arguments={"trl": [], "ours": said_mode(args)},
    )
    rate = args.learning_rate or LEARNING_RATES[task]
    shared = [f"--task={task}", f"--batch={args.batch}", f"--max-length={args.max_length}"]
    shared += [f"--learning-rate={rate}"]
    made = inputs(comparison, args)
    files = [f"--model={made['model']}", f"--pairs={made['pairs']}"]
    rows = alternate(comparison, [*shared, *files, f"--warmup={args.warmup}"], args)
    limit = limits(comparison, made["model"], rows, args)
    return table(rows, limit), {"rows": rows, "limits": limit}


def inputs(comparison: Comparison, args: argparse.Namespace) -> Row:
    count = args.batch * (args.warmup + args.steps)
    command = [str(HERE / "pair_inputs.py"), f"--pairs={args.pairs}", f"--count={count}"]
    command += [f"--max-length={args.max_length}"]
    command += [f"--model={args.model}"] if args.model else []
    made = call_helper(comparison, args, command)
    if made["left_out"]:
        log(f"{made['left_out']} pairs are longer than {args.max_length} tokens: left out")
    return made


def limits(
    comparison: Comparison, model: str, rows: list[Row], args: argparse.Namespace
) -> dict[str, Row]:
    """Each side's bare products of its own mean step."""
    log("limits of the machine")
    found = {}
    for side in {row["side"] for row in rows}:
        mine = [row for row in rows if row["side"] == side]
        sizes = {
            name: round(mean(count for row in mine for count in row[key]))
            for name, key in (("tokens", "computed_tokens"), ("predictions", "predictions"))
        }
        command = [str(HERE / "pair_limits.py"), f"--model={model}", f"--threads={args.threads}"]
        command += [f"--{name}={count}" for name, count in sizes.items()]
        command += [f"--references={int(args.command == 'dpo')}"]
        found[side] = call_helper(comparison, args, command) | sizes
    return found


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--pairs", default=str(TRAINING_PAIRS), help="JSONL of texts")
    command.add_argument("--steps", type=int, default=4, help="timed a round")
    command.add_argument("--warmup", type=int, default=1, help="optimizer steps before them")
    command.add_argument("--batch", type=int, default=8, help="pairs an optimizer step")
    command.add_argument("--max-length", type=int, default=512, help="longer pairs are left out")
    command.add_argument("--learning-rate", type=float, help=f"default: {LEARNING_RATES}")
    add_mode(command)
    command.set_defaults(compare=compare)
