"""The end of a reward model's run: how often it is right, how sure of it, what misleads it."""

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from rich.console import Console
from rich.table import Table

from rlmodules.callbacks.plots import plot_calibration
from rlmodules.callbacks.preference_report import PreferenceReport
from rlmodules.functional.calibration import (
    calibration_curve,
    calibration_error,
    concordance,
    correlation,
    fit_temperature,
)
from rlmodules.functional.statistics import wilson_interval


class RewardReport(PreferenceReport):
    """``PreferenceReport`` with an examination on all held-out data; also ``calibration.png``.

    Args:
        dirpath: the run's folder.
    """

    files: ClassVar = {
        "curves.png": "loss, accuracy and margin over the run",
        "calibration.png": "margins, and accuracy against confidence",
    }

    _judgement: dict[str, torch.Tensor] | None = None

    def labels(self) -> dict[str, str]:
        errors = sorted(key for key in self.after if key.startswith("val/mse_"))
        own = {key: f"squared error of {key.removeprefix('val/mse_')}" for key in errors}
        return self.held_out | own

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._judgement = None
        with pl_module.whole():
            super().on_train_end(trainer, pl_module)

    def details(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        told = super().details(trainer, pl_module)
        dataset = trainer.datamodule.eval_dataset
        self.examination = {}
        if dataset is None:
            return told
        if self._judgement is None:  # once: the report may be written again
            self._judgement = pl_module.judge([dataset[i] for i in range(len(dataset))])
        judgement = self._judgement
        if "targets" in judgement:
            self.examination = self._objectives(pl_module.config.objectives, judgement)
        else:
            self.examination = self._pairs(judgement, self.dirpath / "calibration.png")
        return told | {"examination": self.examination}

    def _pairs(self, judgement: dict[str, torch.Tensor], png: Path) -> dict[str, Any]:
        chosen, rejected = judgement["scores"].unbind(1)
        logits, lengths = chosen - rejected, judgement["lengths"]
        right = ((logits > 0).float() + 0.5 * (logits == 0).float()).sum().item()
        low, high = wilson_interval(right, len(logits))
        temperature = fit_temperature(logits)
        plot_calibration(
            logits,
            {1.0: calibration_curve(logits), temperature: calibration_curve(logits / temperature)},
            png,
        )
        return {
            "pairs": len(logits),
            "accuracy": right / len(logits),
            "accuracy_low": low,
            "accuracy_high": high,
            "calibration_error": calibration_error(logits),
            "temperature": temperature,
            "calibration_error_at_temperature": calibration_error(logits / temperature),
            "length_correlation": correlation(judgement["scores"].flatten(), lengths.flatten()),
            "margin_length_correlation": correlation(logits, lengths[:, 0] - lengths[:, 1]),
            "swap_consistency": (judgement["swapped"].sign() == -logits.sign())
            .float()
            .mean()
            .item(),
        }

    def _objectives(self, names: list[str], judgement: dict[str, torch.Tensor]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for i, name in enumerate(names):
            scores, targets = judgement["scores"][:, i], judgement["targets"][:, i]
            known = ~targets.isnan()
            accuracy, pairs = concordance(scores, targets)
            found[name] = {
                "accuracy": accuracy,
                "pairs": pairs,
                "correlation": correlation(scores[known], targets[known]),
                "length_correlation": correlation(scores, judgement["lengths"][:, 0]),
            }
        return {"responses": len(judgement["scores"]), "objectives": found}

    def body(self, console: Console, seconds: float, trainer: L.Trainer) -> None:
        super().body(console, seconds, trainer)
        results = self.examination
        if "pairs" in results:
            console.print(
                f"Right on {results['accuracy']:.1%} of {results['pairs']} held-out pairs"
                f" (95% interval {results['accuracy_low']:.1%} to {results['accuracy_high']:.1%});"
                f" {results['swap_consistency']:.1%} judged alike with their sides swapped.\n"
                f"Calibration error {results['calibration_error']:.3f};"
                f" {results['calibration_error_at_temperature']:.3f} with scores divided by"
                f" {results['temperature']:.2f} (algo.temperature).\n"
                f"Correlation with length: of scores {results['length_correlation']:+.2f},"
                f" of margins {results['margin_length_correlation']:+.2f}."
            )
        elif results:
            table = Table(title="Held-out responses, by objective", title_justify="left")
            for column in ("", "pairs ordered rightly", "correlation", "with length"):
                table.add_column(column, justify="left" if column == "" else "right")
            for name, row in results["objectives"].items():
                accuracy = f"{row['accuracy']:.1%} of {row['pairs']}"
                numbers = row["correlation"], row["length_correlation"]
                table.add_row(name, accuracy, *(f"{x:+.2f}" for x in numbers))
            console.print(table)
