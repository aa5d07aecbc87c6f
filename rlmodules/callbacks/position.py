"""Where in a run a checkpoint stands, and how Lightning goes on from there.

A checkpoint stands *after an optimizer step* or *between two epochs*, whenever it was written: what
had been begun since then (an accumulation window, an evaluation) is done again from its start, for
half-summed gradients are in no checkpoint. (Storing them would cost a model's size, and sum in
another order over processes.) Lightning's own counters say otherwise while hooks run, and it takes
them at their word: it trained an epoch too many, skipped an evaluation, or lost half a gradient.
"""

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

REPORT = "report.json"
Counters = dict[str, Any]
"""``checkpoint["loops"]["fit_loop"]``, as Lightning 2.6 writes it."""


class RunIsComplete(ValueError):
    """A run was to be gone on with of which nothing is missing."""

    is_complete = True


def is_whole_epoch(trainer: L.Trainer) -> bool:
    """Whether all batches of the epoch in progress were begun: not if a limit cut it short."""
    return trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches


def settle(loops: Counters, *, accumulate: int, batches: float, evaluated: bool = False) -> bool:
    """Set the counters to the last optimizer step, or to the end of the last whole epoch.

    Args:
        loops: changed in place.
        accumulate: batches an optimizer step.
        batches: of an epoch.
        evaluated: whether the evaluation that may be due after this step was done.

    Returns:
        Whether batches were begun since, which will be begun again.
    """
    epoch = loops["epoch_progress"]["current"]
    batch = loops["epoch_loop.batch_progress"]
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    steps, total_steps = (optimizer["step"][of]["completed"] for of in ("current", "total"))
    begun = batch["current"]["ready"]
    before = batch["total"]["ready"] - begun
    done = min(steps * accumulate, begun)
    epochs, total, back = epoch["processed"], before + done, done < batch["current"]["started"]
    if epoch["ready"] == epochs and begun and done < batches:  # a limit cut it short: it goes on
        epochs -= 1
    elif epoch["ready"] == epochs or epoch["started"] < epoch["ready"]:  # over; not begun
        done, back = 0, False
    steps = steps if done else 0

    _set(loops["epoch_progress"], done=epochs, begun=epochs + bool(done))
    for tracker, count in ((batch["current"], done), (batch["total"], total)):
        tracker.update(dict.fromkeys(tracker, count))
    batch["is_last_batch"] = 0 < batches <= done
    for progress in (optimizer["step"], optimizer["zero_grad"]):
        for tracker, count in ((progress["current"], steps), (progress["total"], total_steps)):
            tracker.update(dict.fromkeys(tracker, count))
    scheduler = loops["epoch_loop.scheduler_progress"]
    scheduler["current"].update(ready=steps, completed=steps)
    scheduler["total"]["ready"] = scheduler["total"]["completed"]
    # As while an evaluation runs: if one is due after this step, Lightning then does it first.
    pending = bool(done) and not evaluated
    _set(loops["epoch_loop.val_loop.batch_progress"], done=0, begun=int(pending))
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = total_steps
    loaders = loops["state_dict"].pop("combined_loader", [])
    if done:
        loops["state_dict"]["combined_loader"] = [loader | {"position": done} for loader in loaders]
    return back


def _set(progress: dict[str, Any], *, done: int, begun: int) -> None:
    for tracker in (progress["current"], progress["total"]):
        tracker.update(ready=begun, started=begun, processed=done, completed=done)


class Resuming(Callback):
    """Goes on from a settled checkpoint, also where nothing is left to train.

    Lightning leaves at once where a limit is reached already, without the hooks in which a run is
    evaluated, reported and exported. So the limits are lifted while its loops take their place.
    (Modules attach it themselves, as the first: other callbacks are to see the limits.)
    """

    def __init__(self) -> None:
        self._limits: tuple[int | None, int | None, int] | None = None
        self._until_epoch_end: tuple[int, bool] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is not None:
            loop = trainer.fit_loop
            self._limits = loop.min_epochs, loop.max_epochs, loop.epoch_loop.max_steps
            loop.min_epochs = 2**31  # a timer may ask it to stop before it began
            loop.max_epochs = loop.epoch_loop.max_steps = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._limits is None:
            return
        self._restore_limits(trainer)
        loop = trainer.fit_loop.epoch_loop
        last_batch = loop.restarting and is_whole_epoch(trainer)
        limited = trainer.should_stop or trainer.global_step == trainer.max_steps
        ends = limited or (last_batch and trainer.current_epoch + 1 == trainer.max_epochs)
        if limited and last_batch:  # the epoch still has to end
            self._until_epoch_end = loop.max_steps, trainer.should_stop
            loop.max_steps, trainer.should_stop = -1, False
            if self._until_epoch_end[0] != -1:
                loop.max_steps = trainer.global_step + 1  # other callbacks count with it
        self._evaluate(trainer, ends=ends, goes_on=last_batch or not limited)

    def _evaluate(self, trainer: L.Trainer, *, ends: bool, goes_on: bool) -> None:
        """Evaluate the end of a run, if that is missing; Lightning does so where it is due anyway.

        Args:
            ends: whether this is the end.
            goes_on: whether Lightning's loop will have a turn.
        """
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        stepped, due = trainer.global_step, loop._should_check_val_fx(fetcher)
        loop._batches_that_stepped = stepped - 1  # the loggers' x: as it is while evaluating
        if evaluates := ends and loop.val_loop.restarted_mid_evaluation:
            trainer.validating = True
            loop.val_loop.run()
            trainer.training = True
        if evaluates or not (loop.restarting and due and goes_on):
            loop._batches_that_stepped = stepped

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._until_epoch_end is not None:
            trainer.fit_loop.epoch_loop.max_steps, trainer.should_stop = self._until_epoch_end
            self._until_epoch_end = None

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.on_train_epoch_end(trainer, pl_module)
        if self._limits is not None:
            self._restore_limits(trainer)

    def _restore_limits(self, trainer: L.Trainer) -> None:
        assert self._limits is not None
        loop = trainer.fit_loop
        loop.min_epochs, loop.max_epochs, loop.epoch_loop.max_steps = self._limits
        self._limits = None


def settle_checkpoint(
    checkpoint: dict[str, Any], trainer: L.Trainer, *, ended: int, evaluated: int
) -> bool:
    """Settle a checkpoint that is being written; whether batches were begun since then.

    Also sets its ``epoch``, which Lightning writes for readers alone.

    Args:
        ended: the last epoch whose end the module has seen to; callbacks may see to it before.
        evaluated: after how many steps the last evaluation was that all callbacks have noted.
    """
    loops = checkpoint["loops"]["fit_loop"]
    epoch = loops["epoch_progress"]["current"]
    ending = epoch["processed"] - 1 == epoch["completed"] > ended
    epoch["processed"] -= ending
    played = loops["epoch_loop.val_loop.batch_progress"]["current"]
    noting = played["completed"] == played["ready"] == sum(trainer.num_val_batches)
    back = settle(
        loops,
        accumulate=trainer.accumulate_grad_batches,
        batches=trainer.num_training_batches,
        evaluated=ending or evaluated == trainer.global_step or (trainer.validating and noting),
    )
    checkpoint["epoch"] = loops["epoch_progress"]["current"]["completed"]
    return back


def require_continuable(checkpoint: dict[str, Any], trainer: L.Trainer, epochs: str) -> None:
    """
    Args:
        epochs: the option that says for how many Lightning epochs to train.

    Raises:
        ValueError: nobody knows where the checkpoint stands, or it stands beyond the limits.
        RunIsComplete: it stands at their end, and its run has written its report since.
    """
    if "iteration_states" not in checkpoint:
        raise ValueError(
            "the checkpoint is of an earlier version, whose counters do not say where it stands:"
            " its weights can be loaded, the run cannot be gone on with"
        )
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    steps, folder = checkpoint["global_step"], Path(str(trainer.ckpt_path)).parent.parent
    report = folder / REPORT  # the last that a run writes, after the trained model
    written = json.loads(report.read_text()).get("global_step") if report.is_file() else None
    limits = ((trainer.max_epochs, done, epochs), (trainer.max_steps, steps, "trainer.max_steps"))
    for limit, count, name in limits:
        if limit is None or not -1 < limit <= count:
            continue
        said = f"the checkpoint has {count} of {name}={limit} behind it"
        if count > limit:
            raise ValueError(f"{said}: raise it to go on")
        if written == steps:
            raise RunIsComplete(
                f"{said}, and nothing of that run is missing: it is complete in {folder}."
                " Raise it to go on"
            )
