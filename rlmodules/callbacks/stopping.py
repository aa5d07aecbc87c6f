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
from rlmodules.callbacks.position import is_whole_epoch
from rlmodules.resuming.shares import remove_unnamed, with_values
from rlmodules.resuming.torch_files import read_file
from rlmodules.sweeping.jobs import PAUSE, PAUSED, forget_pause, pause_at


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes atomically: a kill leaves the old checkpoint or the new one, whole.

    (Lightning's own way goes through the system's temporary folder, and a move from there to
    another file system is a copy that can be cut short; it also holds the file in memory once
    more.) Reads tensors and plain values only; what lies in shares beside the file
    (``trainer=fsdp``) goes where the file goes, and is read whole.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        needs = size_in_memory(checkpoint)
        try:
            # Opened here: of a file that torch opens itself, it keeps hold when the disk is full.
            with replacing(Path(path), needs=needs) as partial, partial.open("wb") as file:
                torch.save(checkpoint, file)
        finally:  # what the old file named, or what this one would have
            remove_unnamed(Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """
        Raises:
            ValueError: the file is no checkpoint, or holds more than tensors and plain values; or
                shares are missing.
        """
        found = read_file(path, map_location)
        return with_values(found, path) if isinstance(found, dict) else found

    def remove_checkpoint(self, path: str | Path) -> None:
        super().remove_checkpoint(path)
        remove_unnamed(Path(path))


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
    """Ends the run with the usual exit status of a process that a signal ended, or as ``PAUSED``.

    Args:
        status: 128 and the signal's number; or ``PAUSED``.
        epoch_ended: whether it stopped between two epochs.
    """

    def __init__(self, status: int, epoch_ended: bool = False) -> None:
        super().__init__(status)
        self.epoch_ended = epoch_ended


class UnhealthyRunError(RuntimeError):
    """Ends a run for what its health check found (``HealthGuard``).

    Args:
        symptom: its name.
        said: what was seen, what it means, and what to do.
        began: the iteration or optimizer step since which it is so.
        epoch_ended: whether it stopped between two epochs.
    """

    def __init__(self, symptom: str, said: str, began: int, epoch_ended: bool = False) -> None:
        super().__init__(f"the run is not healthy ({symptom}): {said}")
        self.symptom, self.began, self.epoch_ended = symptom, began, epoch_ended


class SaveLast(Checkpoint):
    """Owns ``last.ckpt``: writes it as often as asked and whenever a run ends or stops.

    A run stops by itself, by a limit, by an error, by SIGTERM or Ctrl-C, or because a file
    ``pause`` in its folder asks it to (``rlmodules.sweeping.jobs``). A signal is obeyed once
    the optimizer step or the evaluation batch in progress is done; a second Ctrl-C stops at once,
    without saving. A file stands after an optimizer step, so it resumes bit by bit.
    (A ``Checkpoint``, because Lightning runs those after the module's own hooks. List it last: what
    other callbacks know of the step belongs into the file.)

    Args:
        dirpath: of the file.
        every_n_epochs, every_n_train_steps: how often, besides; steps are the optimizer's.
    """

    def __init__(
        self,
        dirpath: str | Path,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
    ) -> None:
        self.dirpath, self.path = Path(dirpath), Path(dirpath) / "last.ckpt"
        self._folder = Path(dirpath).parent
        self.every_n_epochs, self.every_n_train_steps = every_n_epochs, every_n_train_steps
        self._saved: tuple[int, bool] | None = None  # after how many steps; with their epoch ended
        self._signal: int | None = None
        self._training = self._ending = self._finishing = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_signals()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_signals()
        if not trainer.fit_loop.done and self._is_paused(trainer):
            raise StoppedBySignal(PAUSED)  # before anything is done: what it began from stands
        self._saved, self._training, self._ending, self._finishing = None, True, False, False
        if trainer.fit_loop.done:  # nothing is left to train, and before the report: a run's last
            self._save(trainer)
            self._finishing = True

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx + 1 >= trainer.num_training_batches:
            return  # the end of the epoch, which still has its own work to do
        self._ending = trainer.should_stop or trainer.global_step == trainer.max_steps
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._ending or (
            between_steps and _divides(trainer.global_step, self.every_n_train_steps)
        ):
            self._save(trainer)
        if between_steps:
            self._stop_if_asked(trainer, evaluated=None)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._stop_if_asked(trainer, evaluated=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        early = self._training and trainer.should_stop and not self._ending
        if early and not is_whole_epoch(trainer):  # stopped by what the evaluation said
            self._save(trainer)
        elif self._training and not is_whole_epoch(trainer) and self._is_paused(trainer):
            self._save(trainer)
            raise StoppedBySignal(PAUSED)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs, steps, whole = (
            trainer.current_epoch + 1,
            trainer.global_step,
            is_whole_epoch(trainer),
        )
        ends = trainer.should_stop or epochs == trainer.max_epochs or steps == trainer.max_steps
        due = _divides(epochs, self.every_n_epochs) or _divides(steps, self.every_n_train_steps)
        if whole and (ends or due):
            self._save(trainer, epoch_ended=True)
        if not ends:
            self._stop_if_asked(trainer, epoch_ended=True)
        self._finishing = ends

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt):
            if trainer.is_global_zero:
                print("\nStopped at once, without saving a checkpoint.", flush=True)
            return
        if getattr(exception, "rolled_back", None):
            return  # to the file that is there
        self._save_at(exception, trainer)
        if trainer.is_global_zero and getattr(exception, "code", None) == PAUSED:
            forget_pause(self._folder)
            print(f"\nPaused, as {self._folder / PAUSE} asked (it is removed).", flush=True)

    def _save_at(self, exception: BaseException, trainer: L.Trainer) -> None:
        if not self._training:
            return
        # Saving is a collective act: one process that failed alone must not wait for the others.
        # What fails between two epochs may have done half of that work: the last file stands.
        if isinstance(exception, StoppedBySignal | UnhealthyRunError) or (
            trainer.world_size == 1 and within_epoch(trainer)
        ):
            ended = getattr(exception, "epoch_ended", False)
            if self._saved != (trainer.global_step, ended):
                self._save(trainer, epoch_ended=ended)
        if trainer.is_global_zero and self.path.is_file():
            rich_print(
                f"\nSaved {self.path}\n"
                f"Continue with the same command and [bold]ckpt_path={self.path}[/]"
            )

    def _save(self, trainer: L.Trainer, *, epoch_ended: bool = False) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = (trainer.global_step, epoch_ended)
        for callback in trainer.callbacks:
            if hasattr(callback, "checkpoint_saved"):
                callback.checkpoint_saved(trainer, self.path)

    def _take_signals(self) -> None:
        # From here on our handlers stand in for Lightning's, which would stop between two
        # accumulated minibatches; when fit ends, it puts back those that it had found.
        for number in (signal.SIGINT, signal.SIGTERM):
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        now = "Finishing what is left to write" if self._finishing else "Stopping after this step"
        print(f"\n{now}; Ctrl-C again stops at once, unsaved.", flush=True)

    def _stop_if_asked(
        self, trainer: L.Trainer, *, epoch_ended: bool = False, evaluated: bool | None = True
    ) -> None:
        signalled = self._signal is not None
        if trainer.world_size > 1:
            signalled = trainer.strategy.reduce_boolean_decision(signalled, all=False)
        if signalled:
            raise StoppedBySignal(128 + (self._signal or signal.SIGTERM), epoch_ended)
        if self._is_paused(trainer, epoch_ended=epoch_ended, evaluated=evaluated):
            raise StoppedBySignal(PAUSED, epoch_ended)

    def _is_paused(
        self, trainer: L.Trainer, *, epoch_ended: bool = False, evaluated: bool | None = True
    ) -> bool:
        """Whether it is to pause here; after a number of units, once these have been evaluated.

        Args:
            evaluated: None if Lightning knows whether that comes after this batch.
        """
        asked = False
        if trainer.is_global_zero and (at := pause_at(self._folder)) is not None:
            online = getattr(trainer.lightning_module, "epochs_option", "") == "num_iterations"
            done = trainer.current_epoch + epoch_ended if online else trainer.global_step
            if evaluated is None:
                evaluated = not _is_evaluation_due(trainer)
            asked = not at or (evaluated and done >= at)
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        return asked


def _is_evaluation_due(trainer: L.Trainer) -> bool:
    """Whether what is held out is evaluated after the batch that has just ended."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _divides(count: int, interval: int | None) -> bool:
    return bool(interval) and count % interval == 0


def within_epoch(trainer: L.Trainer) -> bool:
    """Whether an epoch is in progress: not in what comes after its last batch's evaluation."""
    progress = trainer.fit_loop.epoch_progress.current
    return progress.ready > progress.processed
