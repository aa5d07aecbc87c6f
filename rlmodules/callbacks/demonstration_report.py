"""The end of a run that learned from demonstrations."""

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from rich.console import Console
from rich.text import Text

from rlmodules.callbacks.plots import plot_steps
from rlmodules.callbacks.preference_report import PreferenceReport
from rlmodules.callbacks.samples import plain, print_samples


class DemonstrationReport(PreferenceReport):
    """Held-out loss, perplexity and token accuracy before and after, and what the model writes.

    Args:
        dirpath: the run's folder.
    """

    title = "Held-out demonstrations"
    held_out: ClassVar = {
        "val/loss": "loss",
        "val/perplexity": "perplexity",
        "val/token_accuracy": "token accuracy",
    }
    files: ClassVar = {
        "curves.png": "loss, perplexity and token accuracy over the run",
        "samples": "answers to held-out prompts at each evaluation",
    }

    def body(self, console: Console, seconds: float, trainer: L.Trainer) -> None:
        super().body(console, seconds, trainer)
        print_samples(console, trainer, _sample)

    def plot(self, path: Path) -> None:
        plot_steps(self.history, self.evaluations, path, ("loss", "perplexity", "token_accuracy"))


def _sample(row: dict[str, Any]) -> Text:
    return plain(row["response"])
