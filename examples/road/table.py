"""The table of the road: ``python examples/road/table.py [FOLDER]``."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OWN = {
    "sft": ("perplexity", "val/perplexity", "{:.2f}"),
    "reward": ("pairs ordered rightly", "val/accuracy", "{:.1%}"),
    "ppo": ("learned reward", "val/reward", "{:.2f}"),
    "grpo": ("learned reward", "val/reward", "{:.2f}"),
    "dpo": ("pairs ordered rightly", "val/accuracy", "{:.1%}"),
}
"""Of each stage: what its own report holds out, that metric, and how it is written."""
JUDGED = ("val/reward_learned", "val/reward_sentiment", "val/response_length")


def read(path: Path) -> dict[str, Any]:
    """
    Raises:
        SystemExit: there is none.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise SystemExit(f"{path} is missing: run examples/road/road.sh to its end") from None


def lines(road: Path) -> Iterator[str]:
    """The table in Markdown, a line for the model as it came and for each stage."""
    yield (
        "| stage | held out, by its own report | before | after"
        " | reward model | sentiment | tokens | minutes |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    yield f"| as it came | | | | {judged(road / 'judged' / 'start')} | |"
    for name, (what, metric, form) in OWN.items():
        report = read(road / name / "report.json")
        before, after = (form.format(report[when][metric]) for when in ("before", "after"))
        seen = " | | " if name == "reward" else judged(road / "judged" / name)
        minutes = report["seconds"] / 60
        yield f"| `{name}` | {what} | {before} | {after} | {seen} | {minutes:.1f} |"


def judged(folder: Path) -> str:
    """The cells of a model's held-out answers."""
    metrics = read(folder / "evaluation.json")["metrics"]
    return " | ".join(f"{metrics[name]:.2f}" for name in JUDGED)


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1] if len(sys.argv) > 1 else "road"))))
