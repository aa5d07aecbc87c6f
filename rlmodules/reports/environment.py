"""Where and of what a run is made: versions, commits, machine. Written when it starts."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from datamodules.atomic import write_text

RUN = "run.json"
PACKAGES = (
    "rlmodules", "torch", "lightning", "transformers", "tokenizers", "peft", "datasets",
    "hydra-core", "numpy",
)  # fmt: skip
"""Those on which numbers depend."""


def write_start(folder: Path, **known: Any) -> None:
    """Write ``run.json``: what is ``known`` of the run that starts, and ``described``.

    Of a run that goes on in its folder, the times of the starts before it are kept.
    """
    started = [*read_start(folder).get("started", []), time.strftime("%Y-%m-%dT%H:%M:%S%z")]
    write_text(folder / RUN, json.dumps({"started": started, **known, **described()}, indent=1))


def read_start(folder: Path) -> dict[str, Any]:
    """What ``write_start`` wrote; empty where nothing says how the run began."""
    try:
        return dict(json.loads((folder / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def described() -> dict[str, Any]:
    """Versions, commits of this code and of the folder that it runs in, and the machine."""
    home, here = Path(__file__).parents[2], Path.cwd()
    return {
        "versions": {"python": platform.python_version(), **_versions(PACKAGES)},
        "git": commit(home) if (home / "pyproject.toml").is_file() else None,
        "git_of_folder": None if here == home else commit(here),
        "machine": machine(),
    }


def commit(folder: Path) -> dict[str, Any] | None:
    """The commit of ``folder``, and whether tracked files differ from it; None outside of git."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git(folder, "status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def machine() -> dict[str, Any]:
    """Name, system, processor, cores that may be used, memory in GB and accelerators."""
    allowed = getattr(os, "sched_getaffinity", None)
    return {
        "name": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _processor(),
        "cores": len(allowed(0)) if allowed else os.cpu_count(),
        "memory_gb": _memory(),
        "accelerators": _accelerators(),
    }


def _versions(names: Sequence[str]) -> Mapping[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            found[name] = "not installed"
    return found


def _git(folder: Path, *command: str) -> str:
    options = {"capture_output": True, "text": True, "timeout": 5, "check": True}
    return subprocess.run(["git", "-C", str(folder), *command], **options).stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _accelerators() -> list[str]:
    """Of a process that computes with torch: whoever does not need not import it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ["mps"] if torch is not None and torch.backends.mps.is_available() else []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
