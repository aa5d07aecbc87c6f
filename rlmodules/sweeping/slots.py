"""Slots: how many jobs run at the same time, and what each finds of the machine."""

import os
import shutil
import subprocess

CORES_A_SLOT = 4
"""On a machine without GPUs, by default: fewer threads than that train one model too slowly."""


def gpus() -> list[str]:
    """The GPUs that a process started here sees, as ``CUDA_VISIBLE_DEVICES`` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return names[: names.index("-1")] if "-1" in names else list(filter(None, names))
    if shutil.which("nvidia-smi") is None:
        return []
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    count = sum(line.startswith("GPU ") for line in said.stdout.splitlines())
    return [str(number) for number in range(count)]


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def environments(
    slots: int | None,
    devices_per_job: int | None,
    *,
    gpus: list[str],
    cores: int,
    threads: str | None = None,
) -> list[dict[str, str]]:
    """What the processes of each slot find: their GPUs, and how many threads to use.

    Args:
        slots: how many; None: one a group of ``devices_per_job`` GPUs, or without GPUs one for
            every 4 cores. More slots than groups share these.
        devices_per_job: GPUs (without GPUs, processes) of a job; None: 1.
        gpus, cores: of the machine, to be shared out.
        threads: ``OMP_NUM_THREADS`` as the user has set it, which then holds.

    Raises:
        ValueError: a number is no count, or a job needs more GPUs than there are.
    """
    for name, value in (("slots", slots), ("devices_per_job", devices_per_job)):
        if value is not None and not (type(value) is int and value >= 1):
            raise ValueError(f"hydra.launcher.{name}={value!r} must be a whole number, 1 or more")
    each = 1 if devices_per_job is None else devices_per_job
    groups = [gpus[start : start + each] for start in range(0, len(gpus) - each + 1, each)]
    if gpus and not groups:
        raise ValueError(
            f"hydra.launcher.devices_per_job={each}, but this machine shows {len(gpus)} GPUs"
            f" ({', '.join(gpus)}): ask for fewer, or run the jobs elsewhere (algo.device=cpu,"
            " hydra/launcher=submitit_slurm)"
        )
    count = slots or (len(groups) if groups else max(cores // (CORES_A_SLOT * each), 1))
    share = threads or str(max(cores // (count * each), 1))
    own = [{"OMP_NUM_THREADS": share} for _ in range(count)]
    for number, environment in enumerate(own):
        if groups:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(groups[number % len(groups)])
    return own
