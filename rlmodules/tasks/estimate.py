"""``task=estimate``: how much memory a run takes, and when, before anything is loaded."""

import gc
import json as json_format
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import get_class
from rich.console import Console
from torch import nn

from datamodules.atomic import write_text
from datamodules.checks import is_finite, require_whole
from rlmodules.memory.estimate import Estimate
from rlmodules.memory.files import file_bytes
from rlmodules.memory.kernels import measured
from rlmodules.memory.machine import base_bytes, room_bytes, use_libraries
from rlmodules.memory.parts import size_of
from rlmodules.memory.reading import set_up, texts_of
from rlmodules.memory.run import AUTOCAST, Run
from rlmodules.memory.table import as_table, said_of

DEVICES = ("cpu", "cuda")


def estimate(
    make_module: Callable[[], L.LightningModule],
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    *,
    device: str | None = None,
    devices: int | None = None,
    memory_gb: float | None = None,
    prompt_length: int | None = None,
    json: str | None = None,
) -> str:
    """Print what the run of these settings takes on each of its devices, and what would fit.

    No weights are read: the model is made of its config, without numbers.

    Args:
        device: cpu or cuda; null takes that of the run. A GPU need not be there.
        devices: processes, each on a device of its own; null takes those of the run.
        memory_gb: memory of a device, in GiB; null takes this machine's.
        prompt_length: tokens of every prompt, where the data are not to be read; all other texts
            are then as long as the limits allow. null takes the longest texts of the data.
        json: also write the figures there.

    Raises:
        ValueError: a number is out of range, or the model's config or the data are not there.
    """
    if device not in (None, *DEVICES):
        raise ValueError(f"task.device={device!r}: use cpu, cuda, or null for that of the run")
    given = {"devices": devices, "prompt_length": prompt_length}
    require_whole("task", 1, **{name: n for name, n in given.items() if n is not None})
    if memory_gb is not None and not (is_finite(memory_gb) and memory_gb > 0):
        raise ValueError(f"task.memory_gb={memory_gb} must be positive, or null for this machine's")
    if json is not None and not Path(json).absolute().parent.is_dir():
        raise ValueError(f"task.json={json!r}: there is no folder {Path(json).absolute().parent}")
    found = counted(data, trainer, settings, device, devices, prompt_length)
    room = room_bytes(found.run.device) if memory_gb is None else int(memory_gb * 2**30)
    console = Console()
    console.print(as_table(found))
    said = said_of(found, room)
    if json is not None:
        write_text(Path(json), json_format.dumps(said.figures, indent=2))
    return said.text


def counted(
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    device: str | None = None,
    devices: int | None = None,
    prompt_length: int | None = None,
) -> Estimate:
    """What the run takes; arguments as of ``estimate``.

    On a CPU this process, as it is now, is a part of it.
    """
    device = device or ("cuda" if trainer.strategy.root_device.type == "cuda" else "cpu")
    world = devices or trainer.num_devices * trainer.num_nodes
    run = Run.of(get_class(settings["module"]), settings, device=device, world=world)
    if prompt_length is None:
        set_up(run, data)
    texts = texts_of(run, data, prompt_length)
    if device == "cpu":
        use_libraries(AUTOCAST.get(run.precision))
    base = base_bytes(device)  # before kernels are made, which are counted apart
    return Estimate(
        run,
        texts,
        base=base,
        beside=_loaded_bytes() if device == "cuda" else 0,
        file_bytes=file_bytes(run.model) if device == "cpu" else 0,
        teacher_file_bytes=file_bytes(run.teacher) if run.teacher and device == "cpu" else 0,
        kernel=measured(run.half_on_cpu),
    )


def _loaded_bytes() -> int:
    """Of models that rewards have loaded by now: they score on the device of the policy."""
    parameters = (x for x in gc.get_objects() if isinstance(x, nn.Parameter))
    return size_of(parameters)
