"""Stopping and failing without losing anything: atomic checkpoints, signals, exceptions."""

import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from rich import print as rich_print

from datamodules.atomic import replacing
from rlmodules.resuming.checkpoint import read_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes atomically: a kill leaves the old checkpoint or the new one, whole.

    (Lightning's own way goes through the system's temporary folder, and a move from there to
    another file system is a copy that can be cut short; it also holds the file in memory once
    more.) Reads tensors and plain values only.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        needs = size_in_memory(checkpoint)
        # Opened here: of a file that torch opens itself, it keeps hold when the disk is full.
        with replacing(Path(path), needs=needs) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """
        Raises:
            ValueError: the file is no checkpoint, or holds more than tensors and plain values.
        """
        return read_file(path, map_location)


def newest_checkpoint(root: str | Path) -> Path:
    """The checkpoint below ``root`` that was written last (``ckpt_path=last``).

    Raises:
        FileNotFoundError: there is none.
    """
    checkpoints = [path for path in Path(root).glob("**/checkpoints/last.ckpt") if path.is_file()]
    if not checkpoints:
        raise FileNotFoundError(
            f"ckpt_path=last: no checkpoints/last.ckpt below {Path(root).absolute()};"
            " give the path of a checkpoint"
        )
    return max(checkpoints, key=lambda path: path.stat().st_mtime)


def size_in_memory(value: Any) -> int:
    """Bytes of all tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(size_in_memory, value.values()))
    return sum(map(size_in_memory, value)) if isinstance(value, list | tuple) else 0


class StoppedBySignal(SystemExit):
    """Ends the run with the usual exit status of a process that a signal ended."""


class SaveOnStop(Checkpoint):
    """Writes ``last.ckpt`` when a run ends: by itself, by an error, by SIGTERM or Ctrl-C.

    A signal is obeyed once the optimizer step in progress is done, so that the checkpoint resumes
    bit by bit. A second Ctrl-C stops at once, without saving.
    (A ``Checkpoint``, because Lightning runs those after the module's own hooks.)
    """

    def __init__(self, dirpath: str) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self._signal: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # From here on our handlers stand in for Lightning's, which would stop between two
        # accumulated minibatches; when fit ends, it puts back those that it had found.
        for number in (signal.SIGINT, signal.SIGTERM):
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # The last batch belongs to the end of the epoch, which still has its own work to do.
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if between_steps and batch_idx + 1 < trainer.num_training_batches:
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == trainer.max_epochs and not _is_saved(self.path, trainer):
            trainer.save_checkpoint(self.path)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt):
            if trainer.is_global_zero:
                print("\nStopped at once, without saving a checkpoint.", flush=True)
            return
        if not trainer.training or trainer.optimizers == []:
            return
        # Saving is a collective act: one process that failed alone must not wait for the others.
        if trainer.world_size > 1 and not isinstance(exception, StoppedBySignal):
            return
        trainer.save_checkpoint(self.path)
        if trainer.is_global_zero:
            rich_print(
                f"\nSaved {self.path}\n"
                f"Continue with the same command and [bold]ckpt_path={self.path}[/]"
            )

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        print("\nStopping after this step; Ctrl-C again stops at once, unsaved.", flush=True)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        asked = self._signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            raise StoppedBySignal(128 + (self._signal or signal.SIGTERM))


def _is_saved(path: Path, trainer: L.Trainer) -> bool:
    """Whether a ModelCheckpoint wrote ``path`` at this very step."""
    return any(
        getattr(callback, "_last_checkpoint_saved", None) == str(path)
        and callback._last_global_step_saved == trainer.global_step
        for callback in trainer.checkpoint_callbacks
    )
