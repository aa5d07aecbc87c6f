"""What every algorithm's LightningModule shares: its checkpoints, its gradients, its metrics.

A base class, because Lightning's hooks are methods; it holds nothing that belongs to an algorithm.
"""

import copy
import math
import warnings
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from datamodules.processes import gather
from rlmodules.algorithms.gradients import clip_gradients
from rlmodules.algorithms.means import Means
from rlmodules.algorithms.optimizing import configure, require_same_optimizer
from rlmodules.algorithms.shareable import Shareable
from rlmodules.callbacks.evaluation import EvaluateAtEnd
from rlmodules.callbacks.position import (
    Resuming,
    is_whole_epoch,
    require_continuable,
    settle_checkpoint,
)
from rlmodules.callbacks.run_record import RunRecord
from rlmodules.models.saving import require_exportable
from rlmodules.resuming.checkpoint import FORMAT, require_algorithm
from rlmodules.trackers.rows import go_on, write_row

# Lightning's warning of what is so on purpose: see PolicyModel.train.
warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start")


class AlgorithmModule(Shareable):
    """Saves only what was trained, refuses non-finite gradients, and averages metrics exactly.

    Attributes:
        train_metrics: means over the epoch so far; part of the checkpoint, so that a run that was
            interrupted logs the same numbers.
        counts, began: how much of what was learned from, over all processes, since the run began
            and in what is not over yet: what curves are drawn over, and part of the checkpoint too.
    """

    config: Any
    strict_loading = False  # frozen weights are not in the checkpoint; on_load_checkpoint checks
    epochs_option: ClassVar[str] = "num_epochs"
    """Field of the config that says for how many Lightning epochs to train."""
    needs_schedule: ClassVar[bool] = False
    """Whether there is a scheduler also where the learning rate is constant."""
    counted: ClassVar[tuple[str, ...]] = ()
    """What ``counts`` counts."""
    saved_as: ClassVar[dict[str, str]] = {}
    """How names of weights begin here -> in checkpoints, whose format outlives ours."""

    def __init__(self) -> None:
        super().__init__()
        self.train_metrics = Means()
        self.counts, self.began = (dict.fromkeys(self.counted, 0) for _ in range(2))
        self._state_at_step: dict[str, Any] = {}
        self._ended = self._evaluated = -1  # the last epoch, and step, of which that is done

    def keep_settings(self, model_config: Any) -> None:
        """Have checkpoints hold the settings; trackers get those of the whole run, once."""
        kept = {"config": asdict(self.config), "model_config": asdict(model_config)}
        self.save_hyperparameters(kept, logger=False)

    def configure_callbacks(self) -> list[Callback]:
        """What every Trainer of these modules needs besides its own callbacks, once."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it
        if not any(isinstance(callback, Resuming) for callback in callbacks):
            callbacks.insert(0, Resuming())
        needed = (EvaluateAtEnd, RunRecord)
        return [kind() for kind in needed if not any(isinstance(c, kind) for c in callbacks)]

    def setup(self, stage: str | None = None) -> None:
        """
        Raises:
            ValueError: the Trainer contradicts the algorithm's settings.
        """
        trainer, steps = self.trainer, self.config.gradient_accumulation_steps
        if trainer.state.fn == TrainerFn.FITTING:  # a checkpoint's counts come after this
            self.counts, self.began = (dict.fromkeys(self.counted, 0) for _ in range(2))
        if trainer.accumulate_grad_batches != steps and trainer.state.fn == TrainerFn.FITTING:
            raise ValueError(
                f"the Trainer has accumulate_grad_batches={trainer.accumulate_grad_batches}, and"
                f" algo.gradient_accumulation_steps={steps}: give both the same number"
            )
        if trainer.gradient_clip_algorithm == "value":
            raise ValueError(
                "the Trainer has gradient_clip_algorithm='value': gradients are clipped by norm"
                " (algo.max_grad_norm), leave it out"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Before an accumulation window: what a checkpoint goes back to that is written in it."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._state_at_step = copy.deepcopy(self.iteration_state())

    def on_train_epoch_end(self) -> None:
        if is_whole_epoch(self.trainer):  # else a limit ended the run, which may be gone on with
            self.end_epoch()
            self.settle_counts()
        self._ended = self.current_epoch

    def on_validation_end(self) -> None:
        super().on_validation_end()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._evaluated = self.trainer.global_step

    def end_epoch(self) -> None:
        """What is left to do when all batches of an epoch were learned from."""

    # -------------------------------------------------------------- optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained (``params``), with its ``lr`` and ``weight_decay``."""
        weights = [p for p in self.parameters() if p.requires_grad]
        c = self.config
        return [{"params": weights, "lr": c.learning_rate, "weight_decay": c.weight_decay}]

    def warmup_steps(self, total: int) -> int:
        """Optimizer steps, of ``total``, in which the learning rate rises."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | torch.optim.Optimizer:
        """``algo.optimizer`` over ``parameter_groups``, and ``algo.lr_scheduler_type``."""
        return configure(self)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *closure: Any) -> None:
        """Step, and let gradients go: what is kept for the next ones has their room."""
        super().optimizer_step(epoch, batch_idx, optimizer, *closure)
        optimizer.zero_grad(set_to_none=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm, and log the norm that clipping has to compute anyway."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        most = self.config.max_grad_norm if gradient_clip_val is None else gradient_clip_val
        norm = clip_gradients(optimizer, most, scaler, f"in epoch {self.current_epoch}")
        if norm is not None:
            self.train_metrics.add({"train/grad_norm": norm})

    # ------------------------------------------------------------ checkpoints

    def iteration_state(self) -> dict[str, Any]:
        """Plain values of this process that a checkpoint within an epoch needs besides weights."""
        counted = {"counts": dict(self.counts), "began": dict(self.began)}
        return {"train_metrics": self.train_metrics.state_dict()} | counted

    def load_iteration_state(self, state: dict[str, Any]) -> None:
        self.train_metrics.load_state_dict(state["train_metrics"])
        self.counts |= state.get("counts", {})  # there were none once
        self.began |= state.get("began", {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained, as of the last optimizer step (``callbacks/position.py``)."""
        names, state = self._saved_names(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {names[key]: state[key] for key in state if key in names}
        back = settle_checkpoint(
            checkpoint, self.trainer, ended=self._ended, evaluated=self._evaluated
        )
        iteration_state = self._state_at_step if back else self.iteration_state()
        checkpoint["iteration_states"] = gather(iteration_state)
        checkpoint["algorithm"] = type(self).__name__
        checkpoint["format"] = FORMAT

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: the checkpoint is of another algorithm or model, or cannot be gone on from.
            RunIsComplete: all is done already, the report too.
        """
        require_algorithm(checkpoint, type(self).__name__)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            require_continuable(checkpoint, self._trainer, f"algo.{self.epochs_option}")
            require_same_optimizer(checkpoint, self.config)
        state = checkpoint["state_dict"]
        names = {saved: here for here, saved in self._saved_names().items()}
        if names.keys() != state.keys():
            raise ValueError(
                "the checkpoint is of another model: it lacks"
                f" {sorted(names.keys() - state)[:3]} and has"
                f" {sorted(state.keys() - names)[:3]} besides."
                " Use the model and model.lora.* settings that it was made with:"
                f" {checkpoint.get('hyper_parameters', {}).get('model_config')}"
            )
        checkpoint["state_dict"] = {names[saved]: weight for saved, weight in state.items()}
        self._load_iteration_states(checkpoint.get("iteration_states", []))
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            over = {name: float(count) for name, count in self.counts.items()}
            go_on(self._trainer, checkpoint["global_step"], over)

    def load_weights(self, checkpoint: dict[str, Any]) -> None:
        """Take what was trained from a checkpoint, be it of weights alone; go on with nothing.

        Raises:
            ValueError: as ``on_load_checkpoint``.
        """
        self.on_load_checkpoint(checkpoint)
        self.load_state_dict(checkpoint["state_dict"], strict=False)

    def settings_changed(self, names: Collection[str]) -> None:
        """Take over fields of ``config`` that a run changes where it goes on.

        What a step reads from ``config`` changes by itself; this is for what a checkpoint carries
        on besides.
        """

    def _load_iteration_states(self, states: list[dict[str, Any]]) -> None:
        """This process's of those of all; the first takes all sums, if there were others then."""
        rank, world = self.global_rank, self._trainer.world_size if self._trainer else 1
        if len(states) == world:
            self.load_iteration_state(states[rank])
            return
        for state in states[:1]:
            self.load_iteration_state(state)
        self.train_metrics.clear()
        for state in states if rank == 0 else []:
            self.train_metrics.merge(state["train_metrics"])

    def _saved_names(self) -> dict[str, str]:
        """Names of all that is trained -> their names in a checkpoint."""
        trained = [name for name, p in self.named_parameters() if p.requires_grad]
        trained += [key for key in self.state_dict() if key.endswith("_extra_state")]
        names = dict(zip(trained, trained, strict=True))
        for here, saved in self.saved_as.items():
            names |= {n: saved + n.removeprefix(here) for n in trained if n.startswith(here)}
        return names

    def require_export(self, *, merge: bool | None, dtype: str | None = None) -> None:
        """
        Raises:
            ValueError: what is trained cannot be exported like that.
        """
        require_exportable(self.base_model, merge, dtype)

    def from_export(self, dirpath: Path) -> "AlgorithmModule":
        """What ``export`` wrote in ``dirpath``, loaded, to be judged as this module is."""
        raise NotImplementedError

    # ---------------------------------------------------------------- metrics

    def axes(self) -> dict[str, float]:
        """How far the run is, in all that curves are drawn over besides optimizer steps."""
        return {name: float(count + self.began[name]) for name, count in self.counts.items()}

    def settle_counts(self) -> None:
        """What was begun is over."""
        self.counts = {name: count + self.began[name] for name, count in self.counts.items()}
        self.began = dict.fromkeys(self.counted, 0)

    def log_row(self, metrics: Mapping[str, float], *, tracked: bool = True) -> None:
        """Log numbers of now, for callbacks and, as a row with its axes, for trackers.

        NaN stands for a metric that does not exist (the mean of nothing, a share of 0); it is left
        out, as is its value of an earlier iteration, and infinity with it.

        Args:
            tracked: whether trackers get the row.
        """
        row = dict(metrics) | self.axes()
        row.pop("step", None)  # which Lightning would take for itself
        there = {name: float(value) for name, value in row.items() if math.isfinite(value)}
        for name in row.keys() - there.keys():
            self.trainer.callback_metrics.pop(name, None)
        if self.trainer.state.fn == TrainerFn.VALIDATING:  # returns what is logged by this, slowly
            self.log_dict(there | {"step": float(self.global_step)})
        elif tracked:  # at once: a signal may end the run before Lightning comes to it
            write_row(self.trainer, there)
        self.trainer.callback_metrics.update({n: torch.tensor(x) for n, x in there.items()})

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """Sum over all processes, on the CPU; alone it stays there (MPS has no float64)."""
        if self.trainer.world_size == 1:
            return x.cpu()
        strategy = self.trainer.strategy
        return strategy.reduce(x.to(strategy.root_device), reduce_op="sum").cpu()

    def over_ranks(self, means: Means) -> dict[str, float]:
        """``means`` over all processes, also of metrics that some of them have not met."""
        if self.trainer.world_size > 1:
            names = {name for met in gather(sorted(means.sums)) for name in met}
            means.add(dict.fromkeys(sorted(names), 0.0), weight=0.0)
        return means.compute(self.sum_over_ranks)

    def inference(self) -> AbstractContextManager[None]:
        """The Trainer's precision (autocast, where it is mixed), which loaders run outside of."""
        return self.trainer.precision_plugin.forward_context()
