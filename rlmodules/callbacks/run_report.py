"""The report of an online run: reward, KL and repetition, samples before and after."""

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from rich.console import Console
from rich.text import Text

from rlmodules.callbacks.plots import plot_iterations
from rlmodules.callbacks.position import is_whole_epoch
from rlmodules.callbacks.report import Report, mean_of, plain_metrics
from rlmodules.callbacks.samples import plain, print_samples
from rlmodules.functional.statistics import mcnemar_p


class RunReport(Report):
    """The report of an online algorithm: reward, KL and repetition, samples before and after."""

    title = "Held-out prompts"
    held_out: ClassVar = {
        "val/reward": "reward",
        "val/pass@1": "solved in one attempt (pass@1)",
        "val/kl": "KL to the reference (nats a token)",
        "val/distinct_bigrams": "distinct bigrams",
        "val/response_length": "response length (tokens)",
    }
    files: ClassVar = {
        "curves.png": "reward, KL and repetition over the run",
        "samples": "held-out samples at each evaluation",
    }

    def __init__(self, dirpath: str) -> None:
        super().__init__(dirpath)
        self._evaluated = False
        self._solved: list[dict[int, bool]] = []  # of the first and of the last evaluation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # what was evaluated before training is of none of its iterations
            self._evaluated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._evaluated = not trainer.sanity_checking
        if self._evaluated and pl_module.held_out.solved:
            self._solved = [*self._solved[:1], dict(pl_module.held_out.solved)]

    def labels(self) -> dict[str, str]:
        several = sorted(key for key in self.after if key.startswith("val/pass@"))
        labels = self.held_out | {k: k[4:] for k in several if k not in self.held_out}
        if any("rollout/on_policy" in row for row in self.history):
            labels["val/kl"] = "KL to the teacher (nats a token)"
        return labels

    def held_out_changed(self) -> None:
        super().held_out_changed()
        self._solved = []

    def details(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        if len(self._solved) < 2:
            return {}
        before, after = self._solved
        return {
            "solved_before": sum(before.values()),
            "solved_after": sum(after.values()),
            "problems": len(after),
            "mcnemar_p": mcnemar_p(before, after),
        }

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_whole_epoch(trainer):
            return
        row = plain_metrics(trainer, "")  # also the held-out metrics of long ago
        row = {key: value for key, value in row.items() if not key.startswith("val/")}
        row |= self.after if self._evaluated else {}
        self._evaluated = False
        self.history.append(row)

    def body(self, console: Console, seconds: float, trainer: L.Trainer) -> None:
        last, coefficient = self.history[-1], self.history[-1].get("rollout/kl_coef")
        console.print(
            f"{len(self.history)} iterations in {seconds:.0f} s;"
            f" {mean_of(self.history, 'time/rollout_tokens_per_s'):.0f} tokens/s sampled,"
            f" {mean_of(self.history, 'time/update_tokens_per_s'):.0f} response tokens/s trained;"
            f" last training reward {_number(last.get('rollout/reward'), 3)}"
            + ("" if coefficient is None else f", KL coefficient {coefficient:.4f}")
        )
        solved = self.details(trainer, trainer.lightning_module)
        if solved:
            n = solved["problems"]
            console.print(
                f"First attempts at {n} held-out problems: {solved['solved_before']} right before"
                f" ({solved['solved_before'] / n:.1%}), {solved['solved_after']} after"
                f" ({solved['solved_after'] / n:.1%}); exact McNemar test, two-sided:"
                f" p = {solved['mcnemar_p']:.2g}"
            )
        print_samples(console, trainer, _sample)

    def plot(self, path: Path) -> None:
        plot_iterations(self.history, self.before, path)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"solved": self._solved, "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._solved, self._evaluated = state_dict["solved"], state_dict["evaluated"]


def _sample(row: dict[str, Any]) -> Text:
    return plain(row["response"]).append(f"\nreward {_number(row['reward'], 2)}", style="dim")


def _number(value: float | None, places: int) -> str:
    return "(none applies)" if value is None else f"{value:.{places}f}"
