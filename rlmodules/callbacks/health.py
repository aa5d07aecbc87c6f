"""The health guard: names a failure while it happens, and ends the run or takes it back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from rlmodules.callbacks.position import is_whole_epoch
from rlmodules.callbacks.report import existing, plain_metrics
from rlmodules.callbacks.run_record import RunRecord, settings_of
from rlmodules.callbacks.stopping import SaveLast, UnhealthyRunError, within_epoch
from rlmodules.checks import meant, require, require_known
from rlmodules.metrics.course import Course
from rlmodules.metrics.health import CERTAIN, READ, SYMPTOMS, Finding, check
from rlmodules.resuming.kept import go_back, keep, kept

GROUP = "callbacks.health"
WAYS = ("warn", "stop", "rollback")
KEPT = 3
"""Checkpoints to roll back to, the newest: a failure is often older than the last one."""
EVERY = 100
"""Rows after which not every one is looked at, but every hundredth part of them."""


class HealthGuard(Checkpoint):
    """Checks a run's health while it goes on, by the rules of its report, and does what it is told.

    Online algorithms are checked after each iteration, others after optimizer steps. All processes
    decide alike: by what the first one has found.
    (A ``Checkpoint``, because Lightning runs those after the module has logged. List it before
    ``SaveLast``: what it knows belongs into the file.)

    Args:
        on_failure: warn, which says each symptom once; stop, which ends the run at a failure, with
            a checkpoint; rollback, which goes on from the last healthy checkpoint instead, with a
            lower learning rate.
        symptoms: what is a failure to stop or roll back for, by name; null takes those that no
            healthy run has. All others are said alone.
        lr_factor: of rollback: what the learning rate is multiplied by each time, in (0, 1).
        max_rollbacks: of rollback: how often; the failure after these stops the run.

    Raises:
        ValueError: an option is none of these, or nothing would read it.
    """

    def __init__(
        self,
        on_failure: str = "warn",
        symptoms: Sequence[str] | None = None,
        lr_factor: float = 0.5,
        max_rollbacks: int = 3,
    ) -> None:
        self.on_failure, self.lr_factor = on_failure, lr_factor
        self.max_rollbacks = max_rollbacks
        self.symptoms = CERTAIN if symptoms is None else tuple(symptoms)
        self.restarts = False
        """Whether somebody starts the run again from where it is rolled back to."""
        self.rows: list[dict[str, float]] = []
        self.held_out: list[tuple[int, dict[str, float]]] = []
        self.told: list[str] = []
        self.judged_from = 0  # rows before are of what the run was stopped for
        self.known_ill: list[tuple[int, int]] = []  # from which checkpoint to which, for that
        self._check_options(symptoms)

    def _check_options(self, symptoms: Sequence[str] | None) -> None:
        require_known(self, {"on_failure": WAYS}, GROUP)
        known = [symptom.name for symptom in SYMPTOMS]
        for name in self.symptoms:
            if name not in known:
                raise ValueError(
                    f"{GROUP}.symptoms names {name!r}, and there are {', '.join(known)}"
                    f"{meant(name, known)}"
                )
        require(self, ("symptoms",), bool, "null or one name at least", GROUP)
        share = lambda x: isinstance(x, int | float) and 0 < x < 1  # noqa: E731
        require(self, ("lr_factor",), share, "above 0 and below 1", GROUP)
        whole = lambda x: isinstance(x, int) and x >= 1  # noqa: E731
        require(self, ("max_rollbacks",), whole, "a whole number, at least 1", GROUP)
        if self.on_failure == "warn" and symptoms is not None:
            raise ValueError(
                f"{GROUP}.symptoms names what to stop or roll back for, and on_failure=warn warns"
                f" of every one: leave it out, or set {GROUP}.on_failure=stop"
            )
        if self.on_failure != "rollback" and (self.lr_factor, self.max_rollbacks) != (0.5, 3):
            raise ValueError(
                f"{GROUP}.lr_factor and max_rollbacks are of {GROUP}.on_failure=rollback, not of"
                f" {self.on_failure}: leave them out"
            )

    # ------------------------------------------------------------ before the first step

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """
        Raises:
            ValueError: nothing could be rolled back.
        """
        if self.on_failure != "rollback" or stage != "fit":
            return
        if not self.restarts:
            raise ValueError(
                f"{GROUP}.on_failure=rollback starts a run again, which train.py does and this"
                " script does not: take on_failure='stop', and go on by ckpt_path with a lower"
                " learning rate"
            )
        if _saver(trainer) is None:
            raise ValueError(
                f"{GROUP}.on_failure=rollback goes back to the checkpoints that callbacks.last"
                f" writes, and it is left out: leave it in, or set {GROUP}.on_failure=stop"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """
        Raises:
            ValueError: no checkpoint would be there to roll back to before the run ends.
        """
        saver = _saver(trainer)
        if self.on_failure != "rollback" or saver is None:
            return
        if trainer.ckpt_path is not None:
            self._keep(trainer, Path(str(trainer.ckpt_path)), saver.dirpath)
            return
        length, every = trainer.max_epochs, saver.every_n_epochs
        if saver.every_n_train_steps:
            steps = trainer.num_training_batches // trainer.accumulate_grad_batches
            length, every = (trainer.max_epochs or 0) * steps, saver.every_n_train_steps
        if not every or (length is not None and 0 < length <= every):
            raise ValueError(
                f"{GROUP}.on_failure=rollback: the first checkpoint to go back to would be written"
                f" at the end of the run, as algo.save_every={every} says, which has {length}"
                " iterations or steps: lower it"
            )

    # -------------------------------------------------------------------- looking

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        fitting = trainer.state.fn == TrainerFn.FITTING
        done = self._number + (not _by_steps(pl_module)) if fitting else 0
        found = existing(_kept_of(plain_metrics(trainer, "val/")))
        self.held_out = [*(seen for seen in self.held_out if seen[0] != done), (done, found)]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not _by_steps(pl_module) or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.rows.append(existing(_kept_of(pl_module.step_metrics)))
        if batch_idx + 1 < trainer.num_training_batches:  # else its epoch has its own work to do
            self._look(trainer, pl_module, epoch_ended=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_whole_epoch(trainer):
            return
        if not _by_steps(pl_module):
            row = plain_metrics(trainer, "")  # also the held-out metrics of long ago
            self.rows.append({k: v for k, v in _kept_of(row).items() if k[:4] != "val/"})
        self._look(trainer, pl_module, epoch_ended=True)

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule, *, epoch_ended: bool) -> None:
        """Say what is new, and raise if it is a failure to end the run for.

        Raises:
            UnhealthyRunError: it is; ``on_exception`` sees to the rest.
        """
        count = len(self.rows)
        if count % max(count // EVERY, 1):
            return
        course = Course(self.rows[self.judged_from :], self.held_out, settings_of(pl_module))
        found: list[Finding] = check(course) if trainer.is_global_zero else []
        if trainer.world_size > 1:
            found = trainer.strategy.broadcast(found)
        acts = self.on_failure != "warn"
        failures = [finding for finding in found if acts and finding.name in self.symptoms]
        for finding in found:
            if finding.name not in self.told and finding not in failures[:1]:
                self._say(trainer, f"Health: {finding}")
                self.told.append(finding.name)
        if failures:
            self.judged_from = count
            self.known_ill.append((failures[0].began - 1, self._number))
            raise UnhealthyRunError(failures[0].name, str(failures[0]), failures[0].began,
                                    epoch_ended)  # fmt: skip

    @property
    def _number(self) -> int:
        """After how many iterations or steps the last row stands."""
        return Course(self.rows).number(len(self.rows) - 1) if self.rows else 0

    # ------------------------------------------------------------------- going back

    def checkpoint_saved(self, trainer: L.Trainer, path: Path) -> None:
        """What ``SaveLast`` has just written may be gone back to."""
        if self.on_failure == "rollback":
            self._keep(trainer, path, path.parent)

    def _keep(self, trainer: L.Trainer, path: Path, folder: Path) -> None:
        if trainer.is_global_zero:
            by_steps = _by_steps(trainer.lightning_module)
            begun = self._number + (not by_steps and within_epoch(trainer))
            keep(path, folder, begun, KEPT)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Take the files back, if the run is to be rolled back for this."""
        symptom, saver = getattr(exception, "symptom", None), _saver(trainer)
        if self.on_failure != "rollback" or symptom not in self.symptoms or saver is None:
            return
        began = getattr(exception, "began", None) or self._number + 1
        told: list[str] = [""]
        if trainer.is_global_zero:
            told = [self._go_back(trainer, saver, str(symptom), str(exception), began)]
        if trainer.world_size > 1:
            told = trainer.strategy.broadcast(told)
        if not told[0]:
            exception.rolled_back = saver.path  # type: ignore[attr-defined]
            return
        self._say(trainer, f"It is not rolled back: {told[0]}")

    def _go_back(
        self, trainer: L.Trainer, saver: SaveLast, symptom: str, said: str, began: int
    ) -> str:
        """Why there is no going back; empty if it is done."""
        record = next(c for c in trainer.callbacks if isinstance(c, RunRecord))
        unit = "step" if _by_steps(trainer.lightning_module) else "iteration"
        if len(record.rollbacks) >= self.max_rollbacks:
            return f"it was {len(record.rollbacks)} times already ({GROUP}.max_rollbacks)."
        there = list(kept(saver.dirpath))
        # What an iteration or a step measures is of the weights that it began with: ill, too.
        known_ill = {at for first, last in self.known_ill for at in range(first, last + 1)}
        healthy = [at for at in there if at < began - 1 and at not in known_ill]
        if not healthy:
            oldest = f"the oldest is of {unit} {there[0]}" if there else "there is none yet"
            return (
                f"it is so since {unit} {began}, which began with the weights of the {unit} before,"
                f" and no healthy checkpoint is older ({oldest}): lower algo.learning_rate and"
                " begin anew, or save more often (algo.save_every)."
            )
        scale = record.lr_scale * self.lr_factor
        at = max(self._number, began)  # of a gradient that is no number nothing was logged
        rollback = {"symptom": symptom, "said": said, "unit": unit, "at": at,
                    "to": healthy[-1], "lr_scale": scale}  # fmt: skip
        changes = {"rollbacks": [*record.rollbacks, rollback], "lr_scale": scale}
        go_back(saver.dirpath, healthy[-1], changes)
        self._say(
            trainer,
            f"{said}\nRolled back to {unit} {healthy[-1]}; from there on the learning rate is"
            f" {scale:g} of what it would be.",
        )
        return ""

    def _say(self, trainer: L.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(f"\n{text}", flush=True)

    # ----------------------------------------------------------------- state

    def held_out_changed(self) -> None:
        """The next evaluation is the first: what was held out before is no measure for it."""
        self.held_out = []

    def state_dict(self) -> dict[str, Any]:
        held_out = [[done, row] for done, row in self.held_out]
        told = {"told": list(self.told), "judged_from": self.judged_from}
        ill = [list(span) for span in self.known_ill]
        return {"rows": list(self.rows), "held_out": held_out, "known_ill": ill} | told

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.told = list(state_dict["rows"]), list(state_dict["told"])
        self.held_out = [(done, row) for done, row in state_dict["held_out"]]
        self.judged_from = state_dict["judged_from"]
        self.known_ill = [(first, last) for first, last in state_dict.get("known_ill", [])]


def _saver(trainer: L.Trainer) -> SaveLast | None:
    return next((c for c in trainer.callbacks if isinstance(c, SaveLast)), None)


def _by_steps(pl_module: L.LightningModule) -> bool:
    """Whether metrics are of optimizer steps, not of iterations."""
    return hasattr(pl_module, "step_metrics")


def _kept_of(row: dict[str, float]) -> dict[str, float]:
    """What the rules ask of a row of metrics."""
    return {name: float(row[name]) for name in (*READ, "iteration", "step") if name in row}
