"""What a device has, and what a process takes there before it holds a tensor."""

import os
from pathlib import Path

import torch

from rlmodules.models.embedded import tiny_model

CONTEXT_BYTES = 550 * 2**20
"""Of CUDA's context, kernels and the libraries' workspaces: what nvidia-smi shows beside what torch
has allocated; a figure of other people's cards, until one of ours is measured."""


def base_bytes(device: str) -> int:
    """What a process like this one takes as it is now, which has imported what a run does."""
    return CONTEXT_BYTES if device == "cuda" else resident("VmRSS")


def use_libraries(autocast: torch.dtype | None) -> None:
    """Take a step of the tiny model, and load what draws the curves of a run.

    Pages of libraries count once they were used: a process that has computed is larger, by about
    what it is in the end, than one that has imported alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    FigureCanvasAgg(Figure()).draw()
    model = tiny_model()[0]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.zeros(2, 8, dtype=torch.long)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        loss = model(input_ids=ids).logits.float().logsumexp(-1).sum()
    loss.backward()
    optimizer.step()


def resident(field: str) -> int:
    """Bytes of this process in memory, now (``VmRSS``) or at most so far (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def room_bytes(device: str) -> int | None:
    """What a run may take on this machine's device; None where there is no such device."""
    if device == "cuda":
        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.get_device_properties(0).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()]
    return min(limits)


def machine_bytes() -> int:
    """All that processes of this machine can have, swap included."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total = sum(int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "SwapTotal"))
    return min([total, *_cgroup_limits()])


def available_bytes() -> int:
    """What other processes leave of this machine's memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_cgroup_limits()])
    raise ValueError("/proc/meminfo has no MemAvailable")


def _cgroup_limits() -> list[int]:
    """What a container allows."""
    found = []
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            found.append(int(text))
    return found
