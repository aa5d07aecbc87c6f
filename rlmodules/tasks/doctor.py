"""``task=doctor``: whether a model and its options train rightly, tried out before they do."""

import contextlib
import copy
import io
import json as json_format
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table

from datamodules.atomic import write_text
from datamodules.checks import require_whole
from rlmodules.algorithms.online import OnlineModule
from rlmodules.memory.machine import room_bytes
from rlmodules.memory.run import AUTOCAST
from rlmodules.quiet import without_banners
from rlmodules.tasks import doctor_checks as checks
from rlmodules.tasks.dead_options import dead_options
from rlmodules.tasks.doctor_checks import Check, tried
from rlmodules.tasks.doctor_sample import sample_of
from rlmodules.tasks.doctor_steps import Make, steps_tried
from rlmodules.tasks.estimate import counted
from rlmodules.tasks.ready import make_ready

COLOURS = {"green": "green", "red": "red", "skipped": "dim"}


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
    make, told = partial(cut, make_module, max_new_tokens), Told()
    with TemporaryDirectory(prefix="doctor-") as folder, without_banners():
        looks = examine(make, data, trainer, settings, texts, Path(folder), told)
        found = [told.check(check) for check in looks]
    Console().print(as_table(found))
    ill = [check for check in found if check.status == "red"]
    if out is not None:
        write_text(Path(out), json_format.dumps([asdict(check) for check in found], indent=2))
    if not ill:
        return "All that was looked at is as it should be."
    print("\n".join(f"{check.name}: {check.remedy}" for check in ill), flush=True)
    raise SystemExit(1)


class Told:
    """Says what is done as soon as it is, for on a real model each takes seconds."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def part(self, name: str, status: str = "") -> float:
        """Say how long it took since the part before; returns the seconds."""
        now = time.perf_counter()
        seconds, self.began = round(now - self.began, 1), now
        print(f"{name:14} {status:8}{seconds:6.1f} s", flush=True)
        return seconds

    def check(self, found: Check) -> Check:
        """``found``, with the seconds that it took."""
        return replace(found, seconds=self.part(found.name, found.status))


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
    told: Told,
) -> Iterator[Check]:
    """Every check, one after another; one that fails by an error is red."""
    yield _options(settings)
    # Before anything is loaded: this process, as it is, counts.
    yield tried("memory", lambda: _memory(data, trainer, settings))
    yield from _computed(make(), copy.copy(data), trainer, texts, folder, told)
    yield from steps_tried(make, data, settings, folder)


def _options(settings: Mapping[str, Any]) -> Check:
    """Whether what the command sets does anything."""
    if not HydraConfig.initialized():
        return checks.skipped("options", "there is no command that sets any")
    overrides = HydraConfig.get().overrides.task
    dead = dead_options(overrides, settings)
    said = "; ".join(f"{option} changes nothing: {why}" for option, why in dead.items())
    return Check(
        "options", "red" if dead else "green",
        said or f"none of {len(overrides)} is known to change nothing",
        "Leave out what changes nothing, or set what it waits for.", len(dead), 0,
    )  # fmt: skip


def _computed(
    module: Any, data: Any, trainer: L.Trainer, texts: int, folder: Path, told: Told
) -> Iterator[Check]:
    """What the model computes, before it is trained."""
    make_ready(module, data, trainer)
    told.part("model and data")
    trained = next(p for p in module.parameters() if p.requires_grad)
    dtype = AUTOCAST.get(str(trainer.precision), trained.dtype)
    near, steep = checks.ROUNDING.get(dtype, 1e-3), checks.GRADIENTS.get(dtype, 1e-3)
    sample = sample_of(module, data, texts)
    told.part("sample")
    groups, said = sample.groups, cache(partial(checks.outputs, module, sample.groups))
    looks: dict[str, Callable[[], Check]] = {
        "padding": lambda: checks.padding(module, groups, near),
        "packing": lambda: checks.packing(module, groups, said, near),
        "batch order": lambda: checks.batch_order(module, groups, said, near),
        "sampler": lambda: checks.sampler(module, sample.trajectories, near),
        "reference": lambda: checks.reference(module, groups, said, near),
        "accumulation": lambda: sample.accumulation(steep),
        "export": lambda: checks.exported(module, folder / "model", groups, said, near),
    }
    for name, look in looks.items():
        yield tried(name, look)


def _memory(data: Any, trainer: L.Trainer, settings: Mapping[str, Any]) -> Check:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            found = counted(copy.copy(data), trainer, settings)
        except ValueError as error:  # it says what it does not count
            return checks.skipped("memory", str(error))
    peak = found.peak.total / 2**30
    room = room_bytes(found.run.device)
    status = "green" if room is None or peak <= room / 2**30 else "red"
    there = "" if room is None else f" of {room / 2**30:.1f} GiB"
    return Check(
        "memory", status, f"the run takes about {peak:.2g} GiB{there}",
        "It does not fit: task=estimate says what does (a smaller batch, model.lora.r,"
        " model.gradient_checkpointing).",
        peak, None if room is None else room / 2**30,
    )  # fmt: skip


def as_table(found: list[Check]) -> Table:
    """A row a check, the colour in words too."""
    table = Table(title="What was looked at", title_justify="left", box=None, pad_edge=False)
    for column in ("", "", ""):
        table.add_column(column)
    for check in found:
        colour = COLOURS[check.status]
        table.add_row(check.name, f"[{colour}]{check.status}[/]", check.said)
    return table
