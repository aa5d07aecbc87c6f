"""The metric that a run returns has to exist, which is told as soon as it can be known."""

from collections.abc import Iterable

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from rlmodules.callbacks.report import Report
from rlmodules.checks import meant

PREFIXES = ("val/", "train/", "rollout/", "time/")


class OptimizedMetric(Checkpoint):
    """Refuses a run whose ``optimized_metric`` is none of the metrics that are logged.

    (A ``Checkpoint``, because Lightning runs those after the module has logged.)

    Args:
        name: the metric.
        required: False where a run without it is none the worse: it is the default, and nobody
            asked for it.

    Raises:
        ValueError: the name begins like no metric; by the hooks: others that begin alike are
            logged, and it is not.
    """

    def __init__(self, name: str, required: bool = True) -> None:
        self.name, self.required = name, required
        self._seen: set[str] = set()  # an iteration may have nothing to learn from
        self.prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
        if not self.prefix:
            raise ValueError(f"optimized_metric={name!r} must begin with one of {PREFIXES}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.prefix == "val/" and not trainer.sanity_checking:
            self._check(trainer.callback_metrics)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        if getattr(pl_module, "step_metrics", None):  # logged by optimizer step
            self._check(pl_module.step_metrics)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        warm_up = getattr(pl_module.config, "value_warmup_iterations", 0)
        if self.prefix != "train/" or trainer.current_epoch >= warm_up:  # some exist after it
            told = getattr(pl_module, "rollout_metrics", {})  # those that do not always exist too
            self._check({*trainer.callback_metrics, *told})

    def _check(self, names: Iterable[str]) -> None:
        self._seen |= {name for name in names if name.startswith(self.prefix)}
        alike = sorted(self._seen)
        if self.required and alike and self.name not in alike:
            raise ValueError(
                f"optimized_metric={self.name!r} is not logged by this run"
                f"{meant(self.name, alike) or ': there are ' + ', '.join(alike)}"
            )

    def value(self, trainer: L.Trainer) -> float | None:
        """The metric at the end of the run; None if it was never logged and nobody asked for it.

        Raises:
            ValueError: it was never logged.
        """
        logged = dict(trainer.callback_metrics)
        for callback in trainer.callbacks:  # what a run that only ended here logged before
            if isinstance(callback, Report):
                logged = callback.latest() | logged
        if self.name in logged:
            return float(logged[self.name])
        if self.required:
            raise ValueError(
                f"optimized_metric={self.name!r} was never logged"
                + (": nothing is held out (data.eval_size)" if self.prefix == "val/" else "")
            )
        return None
