"""`compare_trl.py grpo` and `distill`: GRPO and distillation side by side with TRL 1.16.0 and its
transformers backend.

Both sides train the same checkpoint (bfloat16 weights, all of them) on the same questions in the
same order, with the same reward, a reference at a weight of `--beta`, and one optimizer step a
batch of responses, which all have the same length. A row holds, besides side, version, notes and
peak_gib: samples_per_step, response_tokens (of each response), and of each timed step
- seconds,
- prompt_tokens: mean over its questions,
- computed: what the layers compute, in tokens, padding included: `prefill` of the prompts,
  `decoding`, `reference` and `training`.

Of distillation the teacher is where the reference is, and as large as the policy: a copy of the
same checkpoint. All responses are the policy's, one to each question.
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
PARTS = ("prefill", "decoding", "reference", "training")
TARGETS = {"samples/s, ours / TRL": 3.0, "peak memory, TRL / ours": 2.0}


def samples_per_second(row: Row) -> float:
    return row["samples_per_step"] / mean(row["seconds"])


def computed(rows: list[Row]) -> dict[str, int]:
    """Tokens through the layers in the mean timed step, by part."""
    steps = [step for row in rows for step in row["computed"]]
    return {part: round(mean(step[part] for step in steps)) for part in PARTS}


def paired(rows: list[Row]) -> list[str]:
    """The two ratios that count, taken within rounds, with the targets of GRPO."""
    both = both_sides(rows)
    if not both:
        return []
    if any(trl["prompt_tokens"] != ours["prompt_tokens"] for trl, ours in both):
        raise RuntimeError("the two sides' timed steps are of different questions")
    ratios = (
        [samples_per_second(ours) / samples_per_second(trl) for trl, ours in both],
        [trl["peak_gib"] / ours["peak_gib"] for trl, ours in both],
    )
    return [
        f"- **{what}, paired rounds: {spread(values)}** (target of GRPO: {target:g})"
        for (what, target), values in zip(TARGETS.items(), ratios, strict=True)
    ]


def table(rows: list[Row], limit: dict[str, Row], source: str) -> str:
    """The result as markdown."""
    lines = [
        "| side | seconds a step | samples/s | peak GiB | response tokens | prompt tokens "
        "| others' cores |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    summary = []
    for side in SIDES:
        mine = [row for row in rows if row["side"] == side]
        if not mine:
            continue
        seconds = [value for row in mine for value in row["seconds"]]
        lines.append(
            f"| {side} {mine[0]['version']} | {spread(seconds)} "
            f"| {spread([samples_per_second(row) for row in mine])} "
            f"| {max(row['peak_gib'] for row in mine):.2f} | {mine[0]['response_tokens']} "
            f"| {mean(n for row in mine for n in row['prompt_tokens']):.0f} "
            f"| {others_cores(mine)} |"
        )
        bound = limit[side]
        parts = ", ".join(f"{count} {part}" for part, count in computed(mine).items())
        summary.append(
            f"- {side}: time / limit {mean(seconds) / bound['total']:.2f} (limit"
            f" {bound['total']:.2f} s a step: bare products of the tokens computed, {parts};"
            f" {bound['tflops']:.2f} TFLOP/s)"
        )
        summary += [f"- {side}: {note}" for note in mine[0]["notes"]]
    return "\n".join([*lines, "", *paired(rows), *disturbed(rows), f"- {source}", *summary])


def compare(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The table, and what it is made of.

    Raises:
        ValueError: sizes that do not divide, or no reference.
    """
    episodes = args.questions * args.generations
    for name, batch in (("--batch", args.batch), ("--trl-batch", args.trl_batch)):
        if batch < 1 or episodes % batch:
            raise ValueError(f"{name} {batch} must divide the {episodes} responses of a step")
    if args.beta <= 0 and args.command == "grpo":
        raise ValueError(f"--beta {args.beta} must be positive: both sides are to hold a reference")
    trl_only = [f"--batch={args.trl_batch}"]
    trl_only += ["--checkpointing"] if args.trl_checkpointing else []
    comparison = Comparison(
        TRL_VERSION,
        scripts={"trl": HERE / "peers" / "trl_grpo.py", "ours": HERE / "ours_grpo.py"},
        arguments={"trl": trl_only, "ours": [f"--batch={args.batch}", *said_mode(args)]},
    )
    count = args.questions * (args.warmup + args.steps)
    command = [str(HERE / "grpo_task.py"), f"--count={count}"]
    command += [f"--model={args.model}"] if args.model else []
    command += [f"--prompts={args.prompts}"] if args.prompts else []
    made = call_helper(comparison, args, command)
    shared = [f"--model={made['model']}", f"--questions={made['questions']}"]
    shared += [f"--questions-per-step={args.questions}", f"--generations={args.generations}"]
    shared += [f"--response-length={args.response_length}", f"--warmup={args.warmup}"]
    shared += [f"--beta={args.beta}", f"--learning-rate={args.learning_rate}"]
    shared += [f"--teacher={made['model']}"] if args.command == "distill" else []
    rows = alternate(comparison, shared, args)
    limit = limits(comparison, made["model"], rows, args)
    source = f"{args.questions} of {count} questions a step, from: {made['source']}"
    return table(rows, limit, source), {"rows": rows, "limits": limit}


def limits(
    comparison: Comparison, model: str, rows: list[Row], args: argparse.Namespace
) -> dict[str, Row]:
    """Each side's bare products of its own mean step."""
    log("limits of the machine")
    found = {}
    for side in {row["side"] for row in rows}:
        sizes = computed([row for row in rows if row["side"] == side])
        command = [str(HERE / "grpo_limits.py"), f"--model={model}", f"--threads={args.threads}"]
        command += [f"--{part}={sizes[part]}" for part in ("prefill", "reference", "training")]
        command += [f"--episodes={args.questions * args.generations}"]
        command += [f"--response={args.response_length}"]
        found[side] = call_helper(comparison, args, command)
    return found


def add_distillation(command: argparse.ArgumentParser) -> None:
    add_arguments(command)
    command.set_defaults(questions=16, generations=1, beta=1.0, trl_batch=8)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--prompts", help="JSONL of question and answer, as GSM8K; default: generated problems"
    )
    command.add_argument("--steps", type=int, default=4, help="timed a round")
    command.add_argument("--warmup", type=int, default=1, help="optimizer steps before them")
    command.add_argument("--questions", type=int, default=2, help="an optimizer step")
    command.add_argument("--generations", type=int, default=8, help="responses to each question")
    command.add_argument("--response-length", type=int, default=64, help="tokens, exactly")
    command.add_argument("--beta", type=float, default=0.04, help="weight of the reference")
    command.add_argument("--learning-rate", type=float, default=1e-6)
    command.add_argument("--batch", type=int, default=8, help="ours: responses a backward pass")
    command.add_argument("--trl-batch", type=int, default=16, help="TRL's: the same")
    command.add_argument(
        "--trl-checkpointing", action="store_true", help="TRL's default: less memory, more time"
    )
    add_mode(command)
    command.set_defaults(compare=compare)
