"""What algorithms that learn from a fixed set of texts share: steps, schedule, held-out data.

An algorithm adds ``losses(batch) -> (loss, metrics)``, which training and evaluation both call.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.examples.dataset import ExampleBatch
from datamodules.positions import Positions
from rlmodules.algorithms.base import AlgorithmModule
from rlmodules.algorithms.config import OfflineConfig
from rlmodules.algorithms.means import Means, Stopwatch
from rlmodules.trackers.rows import write_row


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
    """A model that learns from ``ExampleBatch``es.

    Args:
        tokenizer: of the model.
    """

    config: OfflineConfig
    counted = ("examples", "tokens")
    needs_schedule = True  # its steps are when metrics are logged
    learns_from: ClassVar[str] = "preferences"
    """Which kind of rows (``datamodules.types.LEARNERS``)."""
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

    def losses(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, divided by ``batch.totals``, and metrics, means over the batch."""
        raise NotImplementedError

    def elements(self, batch: Any) -> dict[str, int]:
        """How many elements a metric of ``losses`` is the mean of, where they are not the examples:
        means over several batches count each alike."""
        return {}

    # -------------------------------------------------------------- training

    def training_step(self, batch: ExampleBatch[Any], batch_idx: int) -> Tensor:
        loss, metrics = self.losses(batch)
        self._note(self.train_metrics, "train", batch, metrics | {"loss": loss.detach()})
        self._window[0] += len(batch)
        self._window[1] += sum(len(s) for group in batch.sequences for s in group)
        return loss

    def _note(
        self, means: Means, stage: str, batch: ExampleBatch[Any], metrics: dict[str, Tensor]
    ) -> None:
        """Add a batch; its loss is a share of a total's, of which the mean is to be the whole."""
        share = len(batch) / batch.totals["num_examples"]
        metrics = metrics | {"loss": metrics["loss"] / share}
        counts = self.elements(batch)
        for name, value in metrics.items():
            means.add({f"{stage}/{name}": value}, weight=counts.get(name, len(batch)))

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

    def validation_step(self, batch: ExampleBatch[Any], batch_idx: int) -> None:
        if len(batch):
            loss, metrics = self.losses(batch)
            self._note(self._val, "val", batch, metrics | {"loss": loss})

    def on_validation_epoch_end(self) -> None:
        self.log_row(self.over_ranks(self._val))
        self._val = Means()
