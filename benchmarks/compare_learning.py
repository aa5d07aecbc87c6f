"""`compare_trl.py grpo|dpo|reward --learn`: does it learn as well as TRL 1.16.0 at equal budget?

Both sides train the same checkpoint on the same rows with the same hyperparameters and as many
optimizer steps, three seeds a side, and are looked at now and then: how much of what is held out
they have right. Looks and loading are no part of the seconds. Weights are float32 (in bfloat16 they
would swallow most of an update), under autocast to bfloat16 unless `--precision=32-true`.

- `grpo`: the default run's generated problems, as many answers to each as there; held-out problems
  are answered with the likeliest tokens.
- `dpo`, `reward`: the pairs that `task=collect_preferences` writes of answers to these problems;
  judged is which side of a held-out pair is preferred.

A row holds, besides side, version, notes and peak_gib: judged (how many are held out) and looks.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from side_by_side import (
    HERE,
    SIDES,
    Comparison,
    Row,
    both_sides,
    call,
    disturbed,
    environment,
    log,
    others_cores,
    run_side,
    spread,
)

sys.path.append(str(HERE.parent))  # for statistics of ours, once both sides are done

TRL_VERSION = "1.16.0"
Look = tuple[int, float, float]
"""Optimizer steps, seconds of training, accuracy."""
TARGET = 0.5
"""Of TRL's seconds, at most, until ours has TRL's final accuracy."""


LEARNING_RATES = {"grpo": 2e-5, "dpo": 1e-5, "reward": 2e-5}
"""As in our `conf/algo`."""


def compare(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The table, and what it is made of."""
    comparison = Comparison(
        TRL_VERSION,
        scripts={"trl": HERE / "peers" / "trl_learning.py", "ours": HERE / "ours_learning.py"},
        arguments={"trl": [], "ours": []},
    )
    is_grpo = args.command == "grpo"
    if is_grpo:
        args.backward = min(args.backward, args.batch * args.generations)
    names = ["batch", "precision", "learning_rate", "look_every"]
    names += ["generations", "backward"] if is_grpo else ["passes"]
    shared = [f"--task={args.command}", *(given(name, getattr(args, name)) for name in names)]
    rows = []
    for turn in range(args.rounds):
        made = inputs(args, args.seed + turn)
        log(f"{made['rows']} rows to train on, {made['judged']} held out")
        files = [given(name, made[name]) for name in ("model", "train", "held_out")]
        for side in [args.only] if args.only else SIDES:
            rows.append(run_side(comparison, side, [*shared, *files], args, turn))
    return table(rows, "problems" if is_grpo else "pairs"), {"rows": rows}


def inputs(args: argparse.Namespace, seed: int) -> Row:
    """Files of a round, made in our environment: pairs are sampled by our own sampler."""
    command = [sys.executable, str(HERE / "learning_inputs.py"), f"--task={args.command}"]
    command += [given(name, getattr(args, name)) for name in ("batch", "judged")]
    command += [f"--seed={seed}"]
    command += [f"--steps={args.updates}"] if args.command == "grpo" else []
    command += [f"--model={args.model}"] * bool(args.model)
    return call(command, environment(args.threads, ours=True))


def given(name: str, value: Any) -> str:
    """An option of a child."""
    return f"--{name.replace('_', '-')}={value}"


# ----------------------------------------------------------------- tables


def accuracies(row: Row) -> list[float]:
    """Share of what is held out that was right, look by look."""
    return [look["right"] / row["judged"] for look in row["looks"]]


def course(rows: Sequence[Row]) -> list[Look]:
    """Means over seeds, look by look."""
    mean: Callable[[int, str], float] = lambda i, name: fmean(r["looks"][i][name] for r in rows)  # noqa: E731
    return [
        (int(look["step"]), mean(i, "seconds"), fmean(accuracies(row)[i] for row in rows))
        for i, look in enumerate(rows[0]["looks"])
    ]


def first_reached(
    looks: Sequence[tuple[int, float, float]], wanted: float
) -> tuple[int, float] | None:
    """The first look that found the accuracy `wanted`; None if none has."""
    return next((look for look in looks if look[2] >= wanted - 1e-9), None)


def table(rows: list[Row], what: str) -> str:
    """The result as markdown."""
    from rlmodules.functional.statistics import wilson_interval
    from rlmodules.reports.statistics import estimate

    judged, updates = rows[0]["judged"], rows[0]["looks"][-1]["step"]
    lines = [
        f"| side | right of {judged} held-out {what}, before | after {updates:.0f} steps, mean"
        " (95%) | each seed (Wilson, 95%) | seconds of training | peak GiB | others' cores |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for side in SIDES:
        mine = [row for row in rows if row["side"] == side]
        if not mine:
            continue
        after = [accuracies(row)[-1] for row in mine]
        intervals = [wilson_interval(share * judged, judged) for share in after]
        each = ", ".join(
            f"{share:.3f} ({low:.3f}-{high:.3f})"
            for share, (low, high) in zip(after, intervals, strict=True)
        )
        lines.append(
            f"| {side} {mine[0]['version']} | {fmean(accuracies(row)[0] for row in mine):.3f} "
            f"| {shown(estimate(after))} | {each} "
            f"| {spread([row['looks'][-1]['seconds'] for row in mine], 1)} "
            f"| {max(row['peak_gib'] for row in mine):.2f} | {others_cores(mine)} |"
        )
    notes = [
        f"- {side}: {note}"
        for side in SIDES
        for note in next((row["notes"] for row in rows if row["side"] == side), [])
    ]
    return "\n".join([*lines, "", *beside_each_other(rows), *disturbed(rows), *notes])


def beside_each_other(rows: list[Row]) -> list[str]:
    """What the two sides are to each other, of rounds that have both."""
    from rlmodules.reports.statistics import estimate

    both = both_sides(rows)
    if not both:
        return []
    theirs, ours = (course([pair[i] for pair in both]) for i in (0, 1))
    apart = [accuracies(mine)[-1] - accuracies(trl)[-1] for trl, mine in both]
    seconds = [mine["looks"][-1]["seconds"] / trl["looks"][-1]["seconds"] for trl, mine in both]
    memory = [mine["peak_gib"] / trl["peak_gib"] for trl, mine in both]
    return [
        f"- **accuracy, ours less TRL's, by seed: {shown(estimate(apart))}**",
        f"- seconds for all steps, ours / TRL: {spread(seconds)}; peak memory: {spread(memory)}",
        f"- **ours {reached(ours, theirs)}** (target: {TARGET:g})",
        f"- TRL {reached(theirs, theirs)}",
        "",
        *curves({"trl": theirs, "ours": ours}),
        "",
    ]


def reached(looks: Sequence[Look], theirs: Sequence[Look]) -> str:
    """When a side, in the mean of its seeds, first was where TRL ended."""
    _, whole, final = theirs[-1]
    found = first_reached(looks, final)
    if found is None:
        return f"never had TRL's final accuracy, {final:.3f}"
    step, seconds, _ = found
    share = f"{seconds / whole:.2f} of TRL's {whole:.1f} s"
    return (
        f"first had TRL's final accuracy, {final:.3f}, after {seconds:.1f} s, {share} (step {step})"
    )


def curves(sides: dict[str, list[Look]]) -> list[str]:
    """Accuracy and seconds look by look, means over seeds."""
    steps = [str(step) for step, _, _ in next(iter(sides.values()))]
    lines = [f"| step | {' | '.join(steps)} |", "|---|" + "---:|" * len(steps)]
    for side, looks in sides.items():
        cells = [f"{accuracy:.3f} at {seconds:.0f} s" for _, seconds, accuracy in looks]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return lines


def shown(found: Any) -> str:
    """An `Estimate` as `0.750 (0.700 to 0.800)`."""
    if found.low is None:
        return f"{found.mean:.3f} (one value, or all alike: no interval)"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def add_arguments(command: argparse.ArgumentParser, task: str) -> None:
    command.add_argument("--learn", action="store_true", help="this comparison")
    if task == "grpo":
        command.add_argument("--updates", type=int, default=16, help="optimizer steps")
        command.add_argument("--batch", type=int, default=32, help="questions a step")
        command.add_argument("--generations", type=int, default=8, help="responses to a question")
        command.add_argument("--backward", type=int, default=128, help="responses at once")
    else:
        command.add_argument("--passes", type=int, default=3, help="over the pairs")
        command.add_argument("--batch", type=int, default=16, help="pairs a step")
    every = 2 if task == "grpo" else 4
    command.add_argument("--look-every", type=int, default=every, help="optimizer steps")
    command.add_argument("--judged", type=int, default=200, help="held-out rows, at most")
    command.add_argument("--learning-rate", type=float, default=LEARNING_RATES[task])
    command.add_argument("--precision", default="bf16-mixed", choices=["bf16-mixed", "32-true"])
    command.set_defaults(compare=compare)
