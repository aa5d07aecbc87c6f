"""The few steps of a training that the doctor tries out, once straight and once interrupted."""

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from rlmodules.callbacks import AtomicCheckpointIO
from rlmodules.models import resolve_precision
from rlmodules.tasks import doctor_checks as checks
from rlmodules.tasks.doctor_checks import Check, failed, tried

STEPS = 3
EPISODES = 4
"""Of a backward pass, or whole groups with as many at least."""
EXAMPLES = 2
"""Of a backward pass."""
Make = Callable[[], Any]


class Steps(NamedTuple):
    """What steps came to.

    Attributes:
        before: trained weights, by their names in checkpoints.
        after: all that checkpoints hold of the module, after the last step.
        count: optimizer steps, over both parts of an interrupted run.
        excuse: why there may have been nothing to learn from; empty where there was something.
    """

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    count: int
    excuse: str


def steps_tried(
    make: Make, data: Any, settings: Mapping[str, Any], folder: Path
) -> Iterator[Check]:
    """Whether ``STEPS`` steps move the weights, and are the same where they are interrupted.

    Neither depends on how large batches are: they are cut, unless the few episodes of the smaller
    ones teach nothing.
    """
    try:
        module = make()
        sizes = cut_sizes(module.config)
        straight = _fit(module, data, sizes, settings, folder)
        if straight.excuse and sizes:
            sizes = {}
            straight = _fit(make(), data, sizes, settings, folder)
    except Exception as error:
        yield from (failed(name, error) for name in ("steps", "resume"))
        return
    yield checks.movement(straight.before, straight.after, straight.count, straight.excuse)

    def resumed() -> Check:
        again = _fit(make(), data, sizes, settings, folder, goes_on=True)
        return checks.resumption(straight.after, again.after, (straight.count, again.count))

    yield tried("resume", resumed)


def cut_sizes(config: Any) -> dict[str, int]:
    """Smaller sizes of batches, by the fields of ``config`` that say them.

    Accumulation stays, and whether an iteration has several steps; groups stay whole.
    """
    if not hasattr(config, "mini_batch_size"):
        return {"batch_size": min(config.batch_size, EXAMPLES)}
    group = getattr(config, "num_generations", 1)
    few, accumulate = group * -(-EPISODES // group), config.gradient_accumulation_steps
    if config.mini_batch_size % few:  # it cuts groups in two, or is small
        return {}
    steps = min(config.batch_size // (config.mini_batch_size * accumulate), 2)
    return {"mini_batch_size": few, "batch_size": few * accumulate * steps}


class _Keeps(Checkpoint):
    """Keeps what there was before, and a checkpoint after the first step.

    (A ``Checkpoint``, because Lightning runs those after the module's own hooks.)
    """

    def __init__(self, first: Path | None) -> None:
        self.first = first  # None where neither is wanted
        self.before: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        trained = {n: p for n, p in pl_module.named_parameters() if p.requires_grad}
        saved = pl_module._saved_names()
        if self.first is not None:
            self.before = {saved[name]: p.detach().cpu().clone() for name, p in trained.items()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 < trainer.num_training_batches:  # else its epoch has its own work to do
            self._keep(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._keep(trainer)

    def _keep(self, trainer: L.Trainer) -> None:
        if self.first is not None and trainer.global_step >= 1 and not self.first.exists():
            trainer.save_checkpoint(self.first)


def _fit(
    module: Any,
    data: Any,
    sizes: dict[str, int],
    settings: Mapping[str, Any],
    folder: Path,
    *,
    goes_on: bool = False,
) -> Steps:
    """Train up to ``STEPS`` optimizer steps.

    Args:
        data: the run's, which is left as it is.
        folder: where the checkpoint after the first step goes.
        goes_on: start from that one.
    """
    first = folder / "first.ckpt"
    if not goes_on:
        first.unlink(missing_ok=True)
    own = {"precision": resolve_precision(str(settings["trainer"]["precision"]))}
    own |= {"max_steps": STEPS, "max_epochs": max(settings["trainer"]["max_epochs"], STEPS)}
    own |= {"logger": False, "enable_progress_bar": False, "limit_val_batches": 0}
    own |= {"default_root_dir": str(folder), "plugins": [AtomicCheckpointIO()]}
    options = {k: v for k, v in settings["trainer"].items() if not k.startswith("_")} | own
    keeps = _Keeps(None if goes_on else first)
    trainer = L.Trainer(**options, callbacks=[keeps])
    L.seed_everything(settings["seed"], verbose=False)
    own_data, ckpt_path = _sized(module, data, sizes), first if goes_on else None
    with contextlib.redirect_stdout(io.StringIO()):  # what is read was told once
        trainer.fit(module, own_data, ckpt_path=ckpt_path, weights_only=True)
    state = module.state_dict()
    after = {saved: state[n].detach().cpu().clone() for n, saved in module._saved_names().items()}
    return Steps(keeps.before, after, trainer.global_step, _excuse(module))


def _sized(module: Any, data: Any, sizes: dict[str, int]) -> Any:
    """A copy of ``data`` with these sizes, of which the module is told too."""
    own = copy.copy(data)
    for name, size in sizes.items():
        setattr(module.config, name, size)
    if hasattr(own, "plan"):
        own.plan = replace(own.plan, **sizes)
    else:
        own.batch_size = module.config.batch_size
    return own


def _excuse(module: Any) -> str:
    told = getattr(module, "rollout_metrics", {})
    alike = told.get("rollout/equal_groups") == 1 or told.get("rollout/reward_std") == 0
    return "the episodes are all rewarded alike: there is nothing to learn from them" * alike
