"""What algorithms that learn from a fixed set of preferences share: steps, schedule, held-out data.

An algorithm adds ``losses(batch) -> (loss, metrics)``, which training and evaluation both call.
"""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.positions import Positions
from datamodules.preferences.dataset import PreferenceBatch
from rlmodules.algorithms.base import AlgorithmModule
from rlmodules.algorithms.config import OfflineConfig
from rlmodules.algorithms.means import Means, Stopwatch
from rlmodules.trackers.rows import write_row


def learning_rate_factor(step: int, warmup: int, total: int, schedule: str) -> float:
    """Share of the peak that step ``step`` of ``total`` (from 0) takes.

    As transformers' schedules of the same names, but no step is wasted at 0: the first of w warm-up
    steps takes 1 / (w + 1), and the last step of a linear decay 1 / (total - w).
    """
    if schedule == "constant":
        return 1.0
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(total - warmup, 1)
    if schedule == "linear":
        return max(1.0 - done, 0.0)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0))) if schedule == "cosine" else 1.0


def planned_steps(trainer: L.Trainer, num_batches: int) -> int:
    """Optimizer steps of the whole run.

    Args:
        num_batches: batches of an epoch, of which ``limit_train_batches`` may leave some out.

    Raises:
        ValueError: the limit leaves none, or cuts an optimizer step in two.
    """
    limit, window = trainer.limit_train_batches, trainer.accumulate_grad_batches
    share = isinstance(limit, float)
    kept = int(num_batches * limit) if share else min(num_batches, limit)
    if not kept or kept % window:
        raise ValueError(
            f"trainer.limit_train_batches={limit} keeps {kept} of {num_batches} batches, and an"
            f" optimizer step takes algo.gradient_accumulation_steps={window}: keep a multiple"
        )
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = math.inf if trainer.max_steps == -1 else trainer.max_steps
    total = min(epochs * (kept // window), steps)
    return int(total) if math.isfinite(total) else 1  # no end is known: a constant schedule's run


def require_room(positions: Positions, max_length: int, option: str = "algo.max_length") -> None:
    """
    Raises:
        ValueError: texts of ``max_length`` tokens have more positions than the model.
    """
    if not positions.hold(max_length):
        raise ValueError(
            f"{option}={max_length} exceeds {positions}: lower it, and"
            " algo.max_prompt_length with it where that is as long"
        )


class OfflineModule(AlgorithmModule):
    """A model that learns from ``PreferenceBatch``es.

    Args:
        tokenizer: of the model.
    """

    config: OfflineConfig
    counted = ("examples", "tokens")
    closes_texts = True
    """Whether responses end with the end token (``datamodules.text.encoding.encode``)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.step_metrics: dict[str, float] = {}
        self._val = Means()
        self._clock = Stopwatch()
        self._window = [0, 0]  # examples and tokens of the optimizer step in progress, here

    # --------------------------------------------------- what an algorithm says

    def losses(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, divided by ``batch.totals``, and metrics, means over the batch."""
        raise NotImplementedError

    def warmup_steps(self, total: int) -> int:
        """Optimizer steps in which the learning rate rises."""
        raise NotImplementedError

    # -------------------------------------------------------------- training

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        loss, metrics = self.losses(batch)
        self._note(self.train_metrics, "train", batch, metrics | {"loss": loss.detach()})
        self._window[0] += len(batch)
        self._window[1] += sum(len(s) for group in batch.sequences for s in group)
        return loss

    def _note(
        self, means: Means, stage: str, batch: PreferenceBatch, metrics: dict[str, Tensor]
    ) -> None:
        """Add a batch; its loss is a share of a total's, of which the mean is to be the whole."""
        share = len(batch) / batch.totals["num_pairs"]
        metrics = metrics | {"loss": metrics["loss"] / share}
        means.add({f"{stage}/{name}": v for name, v in metrics.items()}, weight=len(batch))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """After each optimizer step: what it was like, as ``step_metrics``."""
        self._clock.lap()
        seconds = max(self._clock.seconds, 1e-9)
        window = self.sum_over_ranks(torch.tensor(self._window, dtype=torch.float64))
        examples, tokens = map(int, window.tolist())
        self.began = {"examples": examples, "tokens": tokens}
        self.settle_counts()
        self.step_metrics = self.over_ranks(self.train_metrics) | {
            "train/learning_rate": scheduler.get_last_lr()[0],
            "time/examples_per_s": examples / seconds,
            "time/tokens_per_s": tokens / seconds,
            **self.axes(),
            "step": float(self.trainer.global_step),
        }
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning's
        if every and self.trainer.global_step % every == 0:
            write_row(self.trainer, self.step_metrics)
        self.train_metrics.clear()  # here, for callbacks save or stop before the next hook
        super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let callbacks know of an optimizer step; trackers do already."""
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.log_row(self.step_metrics, tracked=False)
            self._clock.start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._window = [0, 0]

    def on_train_start(self) -> None:
        self._clock.start()

    def on_validation_end(self) -> None:
        super().on_validation_end()
        self._clock.start()  # an evaluation is not the next step's time

    def axes(self) -> dict[str, float]:
        trainer, step = self.trainer, self.trainer.global_step
        batches = step * trainer.accumulate_grad_batches
        return super().axes() | {"epoch": batches / trainer.num_training_batches if step else 0.0}

    # -------------------------------------------------------------- held out

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        if len(batch):
            loss, metrics = self.losses(batch)
            self._note(self._val, "val", batch, metrics | {"loss": loss})

    def on_validation_epoch_end(self) -> None:
        self.log_row(self.over_ranks(self._val))
        self._val = Means()

    # ------------------------------------------------------------- optimizer

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a warm-up and the schedule of ``config.lr_scheduler_type``."""
        c = self.config
        weights = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            weights, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True
        )
        # Not trainer.estimated_stepping_batches: it makes the train loader before a checkpoint is
        # read, and Lightning then never gives the loader its place in the epoch back.
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        total = planned_steps(self.trainer, len(data.train_dataloader()))
        warmup = self.warmup_steps(total)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, warmup, total, c.lr_scheduler_type)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
