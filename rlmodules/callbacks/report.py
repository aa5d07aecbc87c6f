"""The end of a run: a summary, samples before and after, and a plot of how it went."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.control import strip_control_codes
from rich.table import Table
from rich.text import Text

from rlmodules.callbacks.samples import SampleTable

HELD_OUT = {
    "val/reward": "reward",
    "val/kl": "KL to the reference (nats a token)",
    "val/distinct_bigrams": "distinct bigrams",
    "val/response_length": "response length (tokens)",
}


class RunReport(Checkpoint):
    """Collects every iteration's metrics; at the end prints and writes the report.

    Files: ``report.json``, ``report.txt``, ``curves.png``.
    (A ``Checkpoint``, because Lightning runs those after the module has logged.)

    Args:
        dirpath: the run's folder.
    """

    def __init__(self, dirpath: str) -> None:
        self.dirpath = Path(dirpath)
        self.history: list[dict[str, float]] = []
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self._evaluated = False
        self._began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.after = _plain(trainer, "val/")
        self._evaluated = True
        self.before = self.before or self.after

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row = _plain(trainer, "")
        if not self._evaluated:  # Lightning still shows the held-out metrics of long ago
            row = {key: value for key, value in row.items() if not key.startswith("val/")}
        self._evaluated = False
        self.history.append(row)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not self.history:
            return
        self.dirpath.mkdir(parents=True, exist_ok=True)
        report = {
            "before": self.before,
            "after": self.after,
            "seconds": time.perf_counter() - self._began,
            "history": self.history,
        }
        (self.dirpath / "report.json").write_text(json.dumps(report, indent=1))
        plot(self.history, self.before, self.dirpath / "curves.png")
        samples = next((c for c in trainer.callbacks if isinstance(c, SampleTable)), None)
        with (self.dirpath / "report.txt").open("w") as file:
            for console in (Console(), Console(file=file, width=110)):
                self._print(console, report["seconds"], samples)

    def _print(self, console: Console, seconds: float, samples: SampleTable | None) -> None:
        last = self.history[-1]
        table = Table(title="Held-out prompts", title_justify="left")
        for column in ("", "before", "after", "change"):
            table.add_column(column, justify="left" if column == "" else "right")
        for key, label in HELD_OUT.items():
            if key in self.after:
                old, new = self.before[key], self.after[key]
                table.add_row(label, f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
        if self.after:
            console.print(table)
        console.print(
            f"{len(self.history)} iterations in {seconds:.0f} s;"
            f" {_mean(self.history, 'time/rollout_tokens_per_s'):.0f} tokens/s sampled,"
            f" {_mean(self.history, 'time/update_tokens_per_s'):.0f} response tokens/s trained;"
            f" last training reward {last['rollout/reward']:.3f},"
            f" KL coefficient {last['rollout/kl_coef']:.4f}"
        )
        if samples is not None and samples.before:
            table = Table(title="What it writes", title_justify="left", show_lines=True)
            for column in ("prompt", "before", "after"):
                table.add_column(column, overflow="fold")
            for old, new in list(zip(samples.before, samples.latest, strict=False))[:3]:
                table.add_row(_shown(old["prompt"]), *map(_sample, (old, new)))
            console.print(table)
        console.print("Where things are:")
        for name, what in (
            ("model", "the trained model, in Hugging Face format"),
            ("curves.png", "reward, KL and repetition over the run"),
            ("report.json", "this report and every iteration's metrics"),
            ("samples", "held-out samples at each evaluation"),
            ("checkpoints", "continue with ckpt_path=last"),
        ):
            if (self.dirpath / name).exists():
                console.print(f"  {self.dirpath / name}  [dim]{what}[/]", soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "before": self.before, "after": self.after}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]
        self.before, self.after = state_dict["before"], state_dict["after"]


def plot(history: list[dict[str, float]], before: dict[str, float], path: Path) -> None:
    """Reward, KL with its coefficient, and repetition by iteration."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    reward, kl, text = figure.subplots(1, 3)
    steps = [row["iteration"] for row in history]
    held_out = [(0.0, before)] if before else []
    held_out += [(row["iteration"], row) for row in history if "val/reward" in row]
    at = [step for step, _ in held_out]

    reward.plot(steps, [r["rollout/reward"] for r in history], label="training", alpha=0.6)
    kl.plot(steps, [r["rollout/kl"] for r in history], label="training", alpha=0.6)
    if held_out:
        reward.plot(at, [r["val/reward"] for _, r in held_out], "o-", label="held out")
        kl.plot(at, [r["val/kl"] for _, r in held_out], "o-", label="held out")
        text.plot(at, [r["val/distinct_bigrams"] for _, r in held_out], "C1o-", label="held out")
    coefficient = kl.twinx()
    coefficient.plot(steps, [r["rollout/kl_coef"] for r in history], "k:", label="coefficient")
    coefficient.set_ylabel("KL coefficient (dotted)")
    reward.set(title="reward", xlabel="iteration")
    kl.set(title="KL to the reference", xlabel="iteration", ylabel="nats a token")
    text.set(title="distinct bigrams", xlabel="iteration", ylim=(0, 1.02))
    for axes in (reward, kl, text):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
    figure.savefig(path, dpi=120)


def _shown(text: str) -> Text:
    """What a model wrote is neither markup nor control codes to the terminal."""
    return Text(strip_control_codes(text))


def _sample(row: dict[str, Any]) -> Text:
    return _shown(row["response"]).append(f"\nreward {row['reward']:.2f}", style="dim")


def _plain(trainer: L.Trainer, prefix: str) -> dict[str, float]:
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}


def _mean(history: list[dict[str, float]], key: str) -> float:
    values = [row[key] for row in history if key in row]
    return sum(values) / max(len(values), 1)
