"""The longest batch of a run, computed before its first step, so that what does not fit says so.

Forward and backward as in training, beside as many bytes as the optimizer's state and accumulated
gradients will take; then all of it is dropped, and the run is the one that it would be without
(``untouched.py``). On a GPU too much memory is an error, and this is where it comes up. On a CPU
there is none: the kernel kills a process that takes more than there is. So there the figures of
``task=estimate`` are compared with the memory of the machine first. More than all of it, swap
included, is refused, for it cannot end well; more than is free now is a warning, for other
processes may end, and an estimate may be a tenth off.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.environments.text import TextGenerationEnv
from rlmodules.memory.batches import longest_batch
from rlmodules.memory.estimate import Estimate
from rlmodules.memory.kernels import measured
from rlmodules.memory.machine import available_bytes, base_bytes, machine_bytes, resident
from rlmodules.memory.parts import OPTIMIZER, WEIGHTS
from rlmodules.memory.reading import texts_of
from rlmodules.memory.run import Run, states_of
from rlmodules.memory.table import advice, gib, said_of_parts
from rlmodules.memory.untouched import untouched
from rlmodules.trainer_options import is_sharded

OPTION = "longest_batch_first"
CHOICES = ("auto", True, False)
ALIVE = (WEIGHTS, "reference", "gradients", OPTIMIZER, "process")
"""Parts that a rollout does not add."""


def require_choice(settings: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: the option has no such value, or asks for what cannot be.
    """
    value = settings[OPTION]
    if not any(value is choice or value == choice == "auto" for choice in CHOICES):
        raise ValueError(f"{OPTION}={value!r}: use auto, true or false")
    if value is True and (reason := against(settings)):
        raise ValueError(f"{OPTION}=true with {reason}; leave it at auto, which computes none then")


def against(settings: Mapping[str, Any]) -> str | None:
    """What of these settings another batch before the first would make another run of."""
    if is_sharded(settings["trainer"].get("strategy")):
        return "trainer=fsdp: a pass out of step leaves weights whole"
    if settings["model"].get("compile"):
        return "model.compile=true: layers would be compiled for other shapes"
    return None


class LongestBatchFirst(Callback):
    """Computes a run's longest batch when training starts.

    Args:
        settings: of the run, as plain values.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.base = base_bytes("cpu")  # before the model is loaded

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """
        Raises:
            ValueError: the run does not fit.
        """
        asked, kind = self.settings[OPTION], pl_module.device.type
        if asked is False or (asked == "auto" and (kind != "cuda" or against(self.settings))):
            return
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"{OPTION}=true has not been tried on {kind}: leave it at auto")
        with untouched(pl_module), whole_loss(pl_module):
            self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, pl_module: Any) -> None:
        texts = self._texts(trainer, pl_module)
        if texts is None:
            return
        on_cpu = pl_module.device.type == "cpu"
        if on_cpu and (found := self._estimate(trainer, pl_module, texts)) is not None:
            compare(found, processes=max(trainer.world_size // trainer.num_nodes, 1))
        try:
            compute(trainer, pl_module, longest_batch(trainer, pl_module, texts))
            if not on_cpu:
                self._ask_for_rollout(trainer, pl_module, texts)
        except torch.OutOfMemoryError as error:
            found = self._estimate(trainer, pl_module, texts)
            said = str(error).partition(". ")[0]
            raise ValueError(f"{sentence(found)}. The device said: {said}") from error

    def _texts(self, trainer: L.Trainer, module: Any) -> Any:
        """How long they are; None where only an environment's episodes would show it."""
        env = getattr(trainer.datamodule, "env", None)  # type: ignore[attr-defined]  # Lightning's
        if env is not None and not isinstance(env, TextGenerationEnv):
            if self.settings[OPTION] is True:
                raise ValueError(
                    f"{OPTION}=true, but how long episodes of {type(env).__name__} become is known"
                    " once they are played: leave it at auto"
                )
            return None
        uncounted = {"model": self.settings["model"] | {"activation_offload": False}}
        run = self._run(trainer, module, self.settings | uncounted | {"sampler": None})
        return texts_of(run, trainer.datamodule)  # type: ignore[attr-defined]

    def _run(self, trainer: L.Trainer, module: Any, settings: Mapping[str, Any]) -> Run:
        kind = "cpu" if module.device.type == "cpu" else "cuda"
        return Run.of(type(module), settings, device=kind, world=trainer.world_size)

    def _estimate(self, trainer: L.Trainer, module: Any, texts: Any) -> Estimate | None:
        """None, with a warning, of what cannot be counted on paper: it may well run."""
        try:
            run = self._run(trainer, module, self.settings)
            base = self.base if run.device == "cpu" else base_bytes(run.device)
            found = Estimate(run, texts, base=base, kernel=measured(run.half_on_cpu))
            return found if found.moments else None
        except Exception as error:  # whatever an architecture makes of tensors without content
            said = f"{type(error).__name__}: {str(error)[:200]}"
            warnings.warn(f"what memory this run takes is not known: {said}", stacklevel=2)
            return None

    def _ask_for_rollout(self, trainer: L.Trainer, module: Any, texts: Any) -> None:
        """Ask the device for what writing responses will take besides weights and the like."""
        found = self._estimate(trainer, module, texts) if hasattr(module, "sampler") else None
        rollouts = [m for m in found.moments if "rollout" in m.name] if found else []
        more = [sum(n for part, n in m.parts.items() if part not in ALIVE) for m in rollouts]
        beside = state_to_come(trainer, module)
        torch.empty(max(more, default=0), dtype=torch.uint8, device=module.device)
        del beside
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(module.device)


def compare(found: Estimate, processes: int) -> None:
    """
    Args:
        processes: of the run on this machine.

    Raises:
        ValueError: they take more than there is.
    """
    everything, free = machine_bytes(), available_bytes()
    if found.peak.total * processes > everything:
        raise ValueError(f"{sentence(found)}. {gib(everything)} GiB are all this machine has")
    if (found.peak.total - resident("VmRSS")) * processes > free:
        warnings.warn(
            f"{sentence(found)}. {gib(free)} GiB are free: the system may kill this process",
            stacklevel=2,
        )


def sentence(found: Estimate | None) -> str:
    """That a run does not fit, by what, and what to do."""
    if found is None:
        return f"the longest batch of this run does not fit; {OPTION}=false leaves this check out"
    peak = found.peak
    return (
        f"the longest batch of this run does not fit: by estimate {gib(peak.total)} GiB at the"
        f" {peak.name} ({said_of_parts(peak)}). To have it fit, {advice(found.run, peak)}"
        f" task=estimate shows every moment; {OPTION}=false leaves this check out"
    )


def compute(trainer: L.Trainer, module: Any, batch: Any) -> None:
    """Forward and backward pass of ``batch``, with what will be beside it once steps are taken.

    Not through the strategy, whose processes would note a step.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    beside = state_to_come(trainer, module)
    if trainer.accumulate_grad_batches > 1:  # else a step lets go of them
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    precision = trainer.precision_plugin
    batch = trainer.strategy.batch_to_device(precision.convert_input(batch))
    with precision.train_step_context():
        loss = module.training_step(batch, 0)
    loss.backward()
    del beside


def state_to_come(trainer: L.Trainer, module: Any) -> Tensor:
    """As many bytes as the optimizer will keep on the device, if it has taken no step yet."""
    name, size = module.config.optimizer.name, 0
    trained = [p for p in module.parameters() if p.requires_grad]
    if trainer.global_step == 0:
        size = sum(held.device for held in states_of(name, trained, module.base_model))
    return torch.empty(size, dtype=torch.uint8, device=module.device)


@contextlib.contextmanager
def whole_loss(module: Any) -> Iterator[None]:
    """While its critic warms up alone, PPO computes less than it will."""
    config = module.config
    if getattr(config, "value_warmup_iterations", 0):
        module.config = replace(config, value_warmup_iterations=0)
    try:
        yield
    finally:
        module.config = config
