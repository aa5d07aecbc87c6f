"""Runs that go wrong, and their pictures: ``python docs/failures.py [NAME ...]``.

Each page of an algorithm shows one of its failures beside the same run without it. Both are trained
here, on the tiny random model, in half a minute to two; ``docs/pictures/NAME.png`` is drawn from
what they logged. What is failed at is the shape of the curves: the numbers are a tiny model's.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
COMMON = (
    "model=tiny",
    "logger=csv",
    "trainer.precision=32-true",
    "algo.device=cpu",
    *(f"~callbacks.{name}" for name in ("report", "best", "last")),
)
OFFLINE = ("data.eval_size=40", "algo.eval_every=10")
ONLINE = (
    "reward=function",
    "reward.path=failures:share_of_e",
    "algo.num_iterations=60",
    "algo.batch_size=64",
    "algo.mini_batch_size=32",
    "algo.gradient_accumulation_steps=2",
    "algo.max_new_tokens=16",
    "algo.temperature=1.0",
    "algo.eval_every=60",
    "data.eval_size=8",
)
GRPO = ("algo=grpo", "env=text", *ONLINE, "algo.num_generations=8", "data.eval_generations=1")
PREFERENCES = (*OFFLINE, "algo.num_epochs=4")


def share_of_e(prompts: Sequence[str], responses: Sequence[str], metadata=None) -> list[float]:
    """A reward that is easy to hack: the share of a response that is the letter e."""
    return [text.lower().count("e") / max(len(text), 1) for text in responses]


class Failure(NamedTuple):
    """A run that goes wrong.

    Attributes:
        run: the overrides that both runs have.
        well: those of the run that goes well.
        ill: those of the one that does not.
        metrics: what is drawn, a panel each.
        teacher: the overrides of a run that both learn from the model of.
    """

    run: Sequence[str]
    well: Sequence[str]
    ill: Sequence[str]
    metrics: Sequence[str]
    teacher: Sequence[str] = ()


FAILURES = {
    "ppo": Failure(
        ("algo=ppo", "env=text", *ONLINE, "algo.learning_rate=3e-3"),
        ("algo.kl_penalty_coef=0.05",),
        ("algo.kl_penalty_coef=0.0",),
        ("rollout/reward", "rollout/kl", "train/entropy"),
    ),
    "grpo": Failure(
        GRPO,
        ("algo.learning_rate=1e-3",),
        ("algo.learning_rate=2e-2",),
        ("rollout/reward", "rollout/entropy", "rollout/equal_groups"),
    ),
    "distill": Failure(
        (
            *("algo=distill", "env=text", *ONLINE, "algo.batch_size=32"),
            *("algo.gradient_accumulation_steps=1", "algo.eval_every=5", "data.eval_size=32"),
        ),
        ("algo.learning_rate=3e-2",),
        ("algo.learning_rate=3e-1",),
        ("val/kl", "train/entropy", "rollout/reward"),
        teacher=(*GRPO, "algo.learning_rate=1e-3"),
    ),
    "dpo": Failure(
        ("algo=dpo", *OFFLINE),
        ("algo.num_epochs=4", "algo.learning_rate=1e-3"),
        ("algo.num_epochs=8", "algo.learning_rate=1e-2"),
        ("train/loss", "val/loss", "val/accuracy"),
    ),
    "orpo": Failure(
        ("algo=orpo", *PREFERENCES, "algo.learning_rate=3e-3"),
        ("algo.beta=5.0",),
        ("algo.beta=0.05",),
        ("val/nll", "val/log_odds", "val/accuracy"),
    ),
    "kto": Failure(
        ("algo=kto", *PREFERENCES),
        ("algo.learning_rate=1e-3",),
        ("algo.learning_rate=3e-2",),
        ("train/margin", "val/loss", "val/reference_kl"),
    ),
    "sft": Failure(
        ("algo=sft", *OFFLINE, "algo.num_epochs=16", "algo.lr_scheduler_type=constant"),
        ("algo.learning_rate=3e-4",),
        ("algo.learning_rate=1e-2",),
        ("train/nll", "val/nll", "val/token_accuracy"),
    ),
    "reward": Failure(
        ("algo=reward", *OFFLINE),
        ("algo.num_epochs=3", "algo.learning_rate=3e-4"),
        ("algo.num_epochs=10", "algo.learning_rate=3e-3"),
        ("train/accuracy", "val/accuracy", "val/loss"),
    ),
    "pairwise": Failure(
        ("algo=pairwise", *OFFLINE),
        ("algo.num_epochs=3", "algo.learning_rate=3e-4"),
        ("algo.num_epochs=8", "algo.learning_rate=3e-3"),
        ("train/accuracy", "val/accuracy", "val/loss"),
    ),
    "multi_objective": Failure(
        ("algo=multi_objective", *OFFLINE),
        ("algo.num_epochs=12", "algo.learning_rate=3e-4"),
        ("algo.num_epochs=24", "algo.learning_rate=1e-2"),
        ("train/loss", "val/loss", "val/mse_honesty"),
    ),
}


def rows(overrides: Sequence[str], folder: Path) -> list[dict[str, float]]:
    """What a run with these overrides logs.

    Raises:
        RuntimeError: it ended with an error.
    """
    command = [sys.executable, str(ROOT / "train.py"), *COMMON, *overrides]
    command.append(f"hydra.run.dir={folder}")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'docs'}"}
    done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.decode()[-3000:]}")
    with (folder / "csv" / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def draw(name: str, failure: Failure, folder: Path) -> Path:
    """Train both runs of a failure, and draw them over each other."""
    count, run = len(failure.metrics), [*failure.run, "~callbacks.export"]
    if failure.teacher:
        rows(failure.teacher, folder / "teacher")
        run.append(f"algo.teacher_model_name_or_path={folder / 'teacher' / 'model'}")
    figure, panels = plt.subplots(1, count, figsize=(3.2 * count, 2.7), layout="constrained")
    for label, overrides, colour in (
        ("well", failure.well, "#2a6fb0"),
        ("ill", failure.ill, "#d1495b"),
    ):
        logged = rows([*run, *overrides], folder / f"{name}-{label}")
        said = " ".join(text.removeprefix("algo.") for text in overrides)
        for panel, metric in zip(panels, failure.metrics, strict=True):
            points = [(i, row[metric]) for i, row in enumerate(logged, 1) if metric in row]
            across = [row.get("step", i) for i, row in enumerate(logged, 1) if metric in row]
            panel.plot(across, [y for _, y in points], color=colour, lw=1.4, label=said)
            panel.set_title(metric, fontsize=9)
            panel.set_xlabel("optimizer step", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return path


def main(names: Sequence[str]) -> int:
    """Draw the named failures, else all of them."""
    for name in names or FAILURES:
        with TemporaryDirectory(prefix="failures-") as folder:
            print(draw(name, FAILURES[name], Path(folder)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
