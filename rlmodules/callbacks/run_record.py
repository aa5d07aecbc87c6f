"""What run a checkpoint is of: written into it, and compared when a run goes on from it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from rlmodules.resuming.changes import (
    Change,
    Settings,
    allowed,
    compare,
    flatten,
    refusal,
    refused,
    require_known,
    too_late,
)
from rlmodules.resuming.checkpoint import (
    found,
    how_far,
    require_state,
)
from rlmodules.resuming.contents import with_contents
from rlmodules.resuming.shares import with_values
from rlmodules.resuming.table import Effect


class RunRecord(Callback):
    """Writes a run's settings into its checkpoints, and holds a run that goes on against them.

    What cannot change the result needs no word; what can be applied is applied and said; the rest
    is refused (``rlmodules.resuming.table`` says which is which). Modules attach one themselves.

    Args:
        settings: of the run by option; default: those of algorithm and model alone.
        named: options that are interpolations of others, see ``references``.
        allow: options and groups (or one) that may change although the result is then of neither
            run.

    Attributes:
        rollbacks: how often, why and from where to where the run was rolled back (``HealthGuard``).
        lr_scale: what its learning rates are multiplied by since.

    Raises:
        ValueError: ``allow`` names what there is not.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        named: Mapping[str, list[str]] | None = None,
        allow: Collection[str] = (),
    ) -> None:
        self.settings, self.named = dict(settings or {}), named or {}
        self.allow = [allow] if isinstance(allow, str) else list(allow or ())
        require_known(self.allow, self.settings)
        self._read: Settings = {}
        self._fresh: list[list[dict[str, Any]]] = []
        self._path: Any = None
        self._resumed = False
        self._held_out_changed = False
        self.rollbacks: list[dict[str, Any]] = []
        self.lr_scale = 1.0

    # ------------------------------------------------------------ the record

    def of(self, trainer: L.Trainer, pl_module: L.LightningModule | None = None) -> Settings:
        """The run's settings, and what is behind the names in them, as far as it is known yet."""
        settings = settings_of(pl_module) | self.settings if pl_module else self.settings
        unread = {name: value for name, value in settings.items() if name not in self._read}
        self._read |= with_contents(unread)  # once: files may change while the run goes on
        processes = trainer.num_devices * trainer.num_nodes  # before there are so many, too
        here = {"processes": processes, "trainer.precision": str(trainer.precision)}
        data = getattr(trainer, "datamodule", None)
        rows = data.contents() if pl_module and hasattr(data, "contents") else {}
        return self._read | here | rows

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["run"] = self.of(trainer, pl_module)
        checkpoint |= {"rollbacks": list(self.rollbacks), "lr_scale": self.lr_scale}

    # --------------------------------------------------------------- going on

    def find(
        self,
        ckpt_path: str | Path | None,
        roots: Iterable[str | Path],
        trainer: L.Trainer,
        algorithm: str,
    ) -> Path | None:
        """The checkpoint that the run goes on from, as far as one can tell before it is set up.

        Args:
            ckpt_path: a file, a run's folder, ``last`` for the newest of this run's kind, or None.
            roots: where ``last`` looks for runs.
            algorithm: name of the module's class.

        Raises:
            FileNotFoundError: there is none.
            ValueError: the run cannot go on from it.
        """
        if ckpt_path is None:
            return None

        def obstacles(checkpoint: Mapping[str, Any], path: Path) -> list[str]:
            require_state(checkpoint, path)
            changes = self.changes(checkpoint, trainer)
            return list(map(str, refused(changes, self.allow, middle_of(checkpoint))))

        path, checkpoint = found(ckpt_path, roots, algorithm, obstacles)
        require_state(checkpoint, path)
        self.require_same(checkpoint, path, trainer)
        if trainer.is_global_zero:
            print(f"Resuming from {path} ({how_far(checkpoint, path)})", flush=True)
        return path

    def find_weights(
        self,
        ckpt_path: str | Path | None,
        roots: Iterable[str | Path],
        trainer: L.Trainer,
        algorithm: str,
    ) -> tuple[Path, dict[str, Any]] | None:
        """A checkpoint to take the weights of, whatever the run does with them; as ``find``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of another model.
        """
        if ckpt_path is None:
            return None

        def others(checkpoint: Mapping[str, Any], path: Path | None = None) -> list[Change]:
            online = "algo.num_iterations" in self.settings  # how it samples is up to this run
            groups = ("model.", "module") if online else ("model.", "module", "algo.")
            changes = refused(self.changes(checkpoint, trainer), self.allow, None)
            return [change for change in changes if change.option.startswith(groups)]

        path, checkpoint = found(
            ckpt_path, roots, algorithm, lambda *args: list(map(str, others(*args)))
        )
        if differing := others(checkpoint):
            raise ValueError(refusal(path, differing))
        if trainer.is_global_zero:
            print(f"Weights of {path} ({how_far(checkpoint, path)})", flush=True)
        return path, with_values(checkpoint, path, ("state_dict",))

    def require_same(
        self,
        checkpoint: Mapping[str, Any],
        path: Any,
        trainer: L.Trainer,
        pl_module: L.LightningModule | None = None,
    ) -> list[Change]:
        """What has changed since ``checkpoint`` and takes effect.

        Raises:
            ValueError: something else has changed.
        """
        changes = self.changes(checkpoint, trainer, pl_module)
        within = middle_of(checkpoint)
        if stopped := refused(changes, self.allow, within):
            inevitable = [change for change in stopped if allowed(change, self.allow)]
            inevitable += [change for change in stopped if change.option == "processes"]
            raise ValueError(
                too_late(path, inevitable, within or "an epoch")
                if inevitable
                else refusal(path, stopped)
            )
        return changes

    def changes(
        self,
        checkpoint: Mapping[str, Any],
        trainer: L.Trainer,
        pl_module: L.LightningModule | None = None,
    ) -> list[Change]:
        """What differs between the run of ``checkpoint`` and this one."""
        old = checkpoint.get("run")
        if old is None:  # written before there were records
            old = own_settings(checkpoint.get("hyper_parameters", {})) | {"started_by": "unknown"}
        new, algorithm = self.of(trainer, pl_module), checkpoint.get("algorithm", "")
        known = {k: v for k, v in old.items() if k in new or not k.startswith("data.rows")}
        changes = compare(known, new, algorithm=algorithm, named=self.named)
        if holds_experience(checkpoint):  # it is one process's share of an iteration
            changes = [
                replace(change, effect=Effect.ORDER) if change.option == "processes" else change
                for change in changes
            ]
        return changes

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """
        Raises:
            ValueError: the run cannot go on with the settings that it has now.
        """
        changes = self.require_same(checkpoint, trainer.ckpt_path, trainer, pl_module)
        self._resumed = True
        options = {change.option for change in changes}
        self._held_out_changed = "data.rows.held_out" in options
        pl_module.settings_changed({option.removeprefix("algo.") for option in options})
        self.rollbacks = list(checkpoint.get("rollbacks", []))  # there were none once
        told_anew = "algo.learning_rate" in options
        self.lr_scale = 1.0 if told_anew else checkpoint.get("lr_scale", 1.0)
        if "run" not in checkpoint and trainer.is_global_zero:
            print("The checkpoint does not say what data, reward and environment it is of.")
        if changes and trainer.is_global_zero:
            print("Changed from here on:", *changes, sep="\n  ", flush=True)
        if self.lr_scale != 1 and trainer.is_global_zero:
            print(f"The learning rate is {self.lr_scale:g} of algo.learning_rate, since the run was"
                  " rolled back; another algo.learning_rate ends that", flush=True)  # fmt: skip

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The optimizers are new yet: Lightning gives them their checkpoint's state after this.
        self._fresh = [
            [
                {name: value for name, value in group.items() if name != "params"}
                | {"lr": group.get("initial_lr", group["lr"])}
                for group in optimizer.param_groups
            ]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._resumed:
            return
        self._resumed = False
        for optimizer, fresh in zip(trainer.optimizers, self._fresh, strict=True):
            for group, own in zip(optimizer.param_groups, fresh, strict=True):
                group.update(own | {"lr": own["lr"] * self.lr_scale})
        for config in trainer.lr_scheduler_configs:
            restart_schedule(config.scheduler, trainer.global_step)
        if self._held_out_changed:
            for callback in trainer.callbacks:
                if hasattr(callback, "held_out_changed"):
                    callback.held_out_changed()


def restart_schedule(scheduler: Any, step: int) -> None:
    """Have a ``LambdaLR`` go on from ``step``, with the optimizer's peaks and its own factors."""
    groups = scheduler.optimizer.param_groups
    scheduler.last_epoch = step  # of a run that had no schedule, it was at its start
    scheduler.base_lrs = [group["lr"] for group in groups]
    for group, peak, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["initial_lr"] = peak
        group["lr"] = peak * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]


def settings_of(pl_module: L.LightningModule) -> Settings:
    """What a module says of itself: the settings of algorithm and model."""
    return own_settings(pl_module.hparams | {"config": asdict(pl_module.config)})


def own_settings(hyper_parameters: Mapping[str, Any]) -> Settings:
    """Of what a module or its checkpoint keeps as hyper-parameters."""
    groups = {"algo": "config", "model": "model_config"}
    return dict(flatten({g: hyper_parameters.get(name, {}) for g, name in groups.items()}))


def loader_states(checkpoint: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the train loader was; nothing between two epochs."""
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    return [state for state in loop.get("state_dict", {}).get("combined_loader", []) if state]


def middle_of(checkpoint: Mapping[str, Any]) -> str | None:
    """What a checkpoint is in the middle of; None if it is between two epochs."""
    if not loader_states(checkpoint):
        return None
    unit = "iteration" if holds_experience(checkpoint) else "epoch"
    return f"{unit} {checkpoint['epoch'] + 1}"


def holds_experience(checkpoint: Mapping[str, Any]) -> bool:
    """Whether it is in the middle of an iteration of an online algorithm."""
    return any("experiences" in state for state in loader_states(checkpoint))
