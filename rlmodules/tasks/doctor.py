"""``task=doctor``: whether a model and its options train rightly, tried out before they do."""

import contextlib
import copy
import io
import json as json_format
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.table import Table
from torch import Tensor

from datamodules.atomic import write_text
from datamodules.checks import require_whole
from rlmodules.algorithms.online import OnlineModule
from rlmodules.callbacks import AtomicCheckpointIO
from rlmodules.memory.machine import room_bytes
from rlmodules.memory.run import AUTOCAST
from rlmodules.models import resolve_precision
from rlmodules.tasks import doctor_checks as checks
from rlmodules.tasks.doctor_checks import Check
from rlmodules.tasks.doctor_sample import sample_of
from rlmodules.tasks.estimate import estimate
from rlmodules.tasks.ready import make_ready

STEPS = 3
COLOURS = {"green": "green", "red": "red", "skipped": "dim"}
Make = Callable[[], Any]


def doctor(
    make_module: Make,
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    *,
    out: str | None = None,
    texts: int = 4,
    max_new_tokens: int = 16,
) -> str:
    """Print a table of checks of the run that these settings name, and what to do where one is red.

    What it writes meanwhile lies in a folder of its own, which is removed.

    Args:
        out: also write the checks there, as JSON.
        texts: how many examples or episodes are computed with, 2 or more.
        max_new_tokens: tokens of a response at most, where the policy writes some.

    Raises:
        ValueError: a number is out of range, there are several processes, or the run would be
            refused.
        SystemExit: a check is red.
    """
    require_whole("task", 2, texts=texts)
    require_whole("task", 1, max_new_tokens=max_new_tokens)
    if trainer.world_size > 1:
        raise ValueError(
            f"task=doctor looks at one process, not {trainer.world_size}: set trainer.devices=1"
        )
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise ValueError(f"out={out!r}: there is no folder {Path(out).absolute().parent}")
    make = partial(cut, make_module, max_new_tokens)
    with TemporaryDirectory(prefix="doctor-") as folder:
        found = list(examine(make, data, trainer, settings, texts, Path(folder)))
    Console().print(as_table(found))
    ill = [check for check in found if check.status == "red"]
    if out is not None:
        write_text(Path(out), json_format.dumps([asdict(check) for check in found], indent=2))
    if not ill:
        return "All that was looked at is as it should be."
    print("\n".join(f"{check.name}: {check.remedy}" for check in ill), flush=True)
    raise SystemExit(1)


def cut(make_module: Make, max_new_tokens: int) -> Any:
    """A module whose responses have so many tokens at most, and whose policy learns at once."""
    module = make_module()
    if isinstance(module, OnlineModule):
        fewest = min(module.config.max_new_tokens, max_new_tokens)
        module.config.max_new_tokens = fewest
        if hasattr(module.config, "value_warmup_iterations"):
            module.config.value_warmup_iterations = 0  # in which the policy stays as it is
        module.sampling = replace(module.sampling, max_new_tokens=fewest)
    return module


def examine(
    make: Make,
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    texts: int,
    folder: Path,
) -> Iterator[Check]:
    """Every check, one after another; one that fails by an error is red."""
    yield from _computed(make(), copy.copy(data), trainer, texts, folder)
    yield from _trained(make, data, settings, folder)
    yield _tried("memory", lambda: _memory(make, data, trainer, settings, folder))


def _computed(
    module: Any, data: Any, trainer: L.Trainer, texts: int, folder: Path
) -> Iterator[Check]:
    """What the model computes, before it is trained."""
    make_ready(module, data, trainer)
    trained = next(p for p in module.parameters() if p.requires_grad)
    dtype = AUTOCAST.get(str(trainer.precision), trained.dtype)
    near, steep = checks.ROUNDING.get(dtype, 1e-3), checks.GRADIENTS.get(dtype, 1e-3)
    sample = sample_of(module, data, texts)
    looks: dict[str, Callable[[], Check]] = {
        "padding": lambda: checks.padding(module, sample.groups, near),
        "packing": lambda: checks.packing(module, sample.groups, near),
        "batch order": lambda: checks.batch_order(module, sample.groups, near),
        "sampler": lambda: checks.sampler(module, sample.trajectories, near),
        "reference": lambda: checks.reference(module, sample.groups, near),
        "accumulation": lambda: sample.accumulation(steep),
        "export": lambda: checks.exported(module, folder / "model", sample.groups, near),
    }
    for name, look in looks.items():
        yield _tried(name, look)


def _trained(make: Make, data: Any, settings: Mapping[str, Any], folder: Path) -> Iterator[Check]:
    """What three steps of a training come to."""
    first = folder / "first.ckpt"
    module = make()
    try:
        straight, before = _fit(module, copy.copy(data), settings, folder / "straight", first)
    except Exception as error:
        yield from (_failed(name, error) for name in ("steps", "resume"))
        return
    told, excuse = getattr(module, "rollout_metrics", {}), ""
    if told.get("rollout/equal_groups") == 1 or told.get("rollout/reward_std") == 0:
        excuse = "the episodes are all rewarded alike: there is nothing to learn from them"
    yield checks.movement(before, straight["state_dict"], STEPS, excuse)

    def resumed() -> Check:
        again, _ = _fit(make(), copy.copy(data), settings, folder / "again", None, first)
        return checks.resumption(straight, again)

    yield _tried("resume", resumed)


class _Keeps(Checkpoint):
    """Keeps what there was before, and a checkpoint after the first step.

    (A ``Checkpoint``, because Lightning runs those after the module's own hooks.)
    """

    def __init__(self, first: Path | None) -> None:
        self.first, self.before = first, {}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        trained = {n: p for n, p in pl_module.named_parameters() if p.requires_grad}
        saved = pl_module._saved_names()
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
    settings: Mapping[str, Any],
    folder: Path,
    first: Path | None,
    ckpt_path: Path | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checkpoint after ``STEPS`` optimizer steps, and the weights before them."""
    own = {"precision": resolve_precision(str(settings["trainer"]["precision"]))}
    own |= {"max_steps": STEPS, "max_epochs": max(settings["trainer"]["max_epochs"], STEPS)}
    own |= {"logger": False, "enable_progress_bar": False, "default_root_dir": str(folder)}
    own |= {"limit_val_batches": 0, "plugins": [AtomicCheckpointIO()]}
    options = {k: v for k, v in settings["trainer"].items() if not k.startswith("_")} | own
    keeps = _Keeps(first)
    trainer = L.Trainer(**options, callbacks=[keeps])
    L.seed_everything(settings["seed"], verbose=False)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return torch.load(folder / "last.ckpt", weights_only=True), keeps.before


def _memory(
    make: Make, data: Any, trainer: L.Trainer, settings: Mapping[str, Any], folder: Path
) -> Check:
    with contextlib.redirect_stdout(io.StringIO()):
        path = str(folder / "memory.json")
        try:
            estimate(make, copy.copy(data), trainer, settings, json=path)
        except ValueError as error:  # it says what it does not count
            return checks.skipped("memory", str(error))
    peak = json_format.loads(Path(path).read_text())["peak_bytes"] / 2**30
    room = room_bytes("cuda" if trainer.strategy.root_device.type == "cuda" else "cpu")
    status = "green" if room is None or peak <= room / 2**30 else "red"
    there = "" if room is None else f" of {room / 2**30:.1f} GiB"
    return Check(
        "memory", status, f"the run takes about {peak:.2g} GiB{there}",
        "It does not fit: task=estimate says what does (a smaller batch, model.lora.r,"
        " model.gradient_checkpointing).",
        peak, None if room is None else room / 2**30,
    )  # fmt: skip


def _tried(name: str, look: Callable[[], Check]) -> Check:
    try:
        return look()
    except Exception as error:
        return _failed(name, error)


def _failed(name: str, error: Exception) -> Check:
    said = f"{type(error).__name__}: {error}"
    return Check(name, "red", said, "It could not be tried: mend this first.")


def as_table(found: list[Check]) -> Table:
    """A row a check, the colour in words too."""
    table = Table(title="What was looked at", title_justify="left", box=None, pad_edge=False)
    for column in ("", "", ""):
        table.add_column(column)
    for check in found:
        colour = COLOURS[check.status]
        table.add_row(check.name, f"[{colour}]{check.status}[/]", check.said)
    return table
