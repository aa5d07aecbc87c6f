"""The end of a run that learned from preferences."""

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from rlmodules.callbacks.plots import plot_steps
from rlmodules.callbacks.report import Report, existing, mean_of


class PreferenceReport(Report):
    """Held-out accuracy, margin and loss before and after, and how training went.

    Args:
        dirpath: the run's folder.
    """

    title = "Held-out preferences"
    held_out: ClassVar = {
        "val/accuracy": "accuracy",
        "val/margin": "margin of the rewards",
        "val/loss": "loss",
        "val/reward_chosen": "reward of chosen responses",
        "val/reward_rejected": "reward of rejected responses",
        "val/logps_chosen": "log-probability of chosen responses",
        "val/logps_rejected": "log-probability of rejected responses",
    }
    files: ClassVar = {"curves.png": "loss, accuracy and margin over the run"}

    def __init__(self, dirpath: str) -> None:
        super().__init__(dirpath)
        self.evaluations: list[dict[str, float]] = []

    def rows(self) -> list[dict[str, float]]:
        return [*self.history, *self.evaluations]

    def details(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        data = getattr(trainer, "datamodule", None)
        dataset = getattr(data, "eval_dataset", None)
        count = {} if dataset is None else {"held_out": len(dataset)}
        return {"evaluations": self.evaluations, **count}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking and self.after:
            step = trainer.global_step if trainer.state.fn == TrainerFn.FITTING else 0
            self.evaluations.append(self.after | {"step": float(step)})

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.history.append(existing(pl_module.step_metrics))

    def body(self, console: Console, seconds: float, trainer: L.Trainer) -> None:
        console.print(
            f"{len(self.history)} optimizer steps in {seconds:.0f} s;"
            f" {mean_of(self.history, 'time/examples_per_s'):.2f} examples/s,"
            f" {mean_of(self.history, 'time/tokens_per_s'):.0f} tokens/s;"
            f" last training loss {self.history[-1]['train/loss']:.3f}"
        )
        drift = self.after.get("val/chosen_drift", 0.0)
        if drift < 0:
            console.print(
                f"Chosen responses are {-drift:.1f} nats each less likely than at the start.",
                style="yellow",
            )

    def plot(self, path: Path) -> None:
        plot_steps(self.history, self.evaluations, path)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"evaluations": self.evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.evaluations = state_dict["evaluations"]
