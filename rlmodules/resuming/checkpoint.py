"""Checkpoint files: which one is meant, whether it is one, and how far it is."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlmodules.resuming.folder import is_follower
from rlmodules.resuming.shares import IN_SHARES, Shares
from rlmodules.resuming.torch_files import read_file

FORMAT, NEWEST = 2, IN_SHARES
"""Of what is written, in one file and in shares; a higher one is of a later version."""
LAST = "RLMODULES_LAST"
"""Environment variable: what ``last`` was, for the processes that Lightning starts of this one."""
LISTED = 5
"""Runs that a message lists at most."""


def checkpoint_of(ckpt_path: str | Path) -> Path:
    """The file that ``ckpt_path`` means: itself, or the ``last.ckpt`` of a run's folder.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a folder that is no run's.
    """
    path = Path(ckpt_path)
    if path.is_file():
        return path
    for inside in (path / "checkpoints" / "last.ckpt", path / "last.ckpt"):
        if inside.is_file():
            return inside
    given = f"ckpt_path={str(ckpt_path)!r}"
    if not path.exists():
        raise FileNotFoundError(f"{given}: there is no such file ({path.absolute()})")
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        raise ValueError(f"{given} is a model's folder: start a run from it by model.name={path}")
    raise ValueError(f"{given} is a folder without checkpoints/last.ckpt: no run has saved there")


def read(path: Path) -> dict[str, Any]:
    """A checkpoint that an algorithm of ours wrote; tensors are read when they are used.

    Of what lies in shares there are names and shapes (``rlmodules.resuming.shares.with_values``).

    Raises:
        ValueError: it is none, is of a later version, or lacks some of its shares.
    """
    found, given = read_file(path, mmap=True), f"ckpt_path={str(path)!r}"
    refused = f"{given} is no checkpoint of ours: it holds"
    if not isinstance(found, dict) or not {"state_dict", "loops"} <= found.keys():
        what = type(found).__name__
        if isinstance(found, dict):
            what = f"{', '.join(map(str, list(found)[:3])) or 'nothing'}, as a file of weights may"
        raise ValueError(f"{refused} {what}; a run writes checkpoints/last.ckpt")
    if not {"iteration_states", "iteration_state"} & found.keys():
        raise ValueError(f"{refused} another program's Lightning checkpoint")
    if found.get("format", 1) > NEWEST:
        raise ValueError(
            f"{given} is of format {found['format']}, and this version reads {NEWEST}: it was"
            " written by a later one; install that"
        )
    Shares.of(found, path)  # all of it is there
    return found


def require_state(checkpoint: Mapping[str, Any], path: Path) -> None:
    """
    Raises:
        ValueError: it holds weights, and nothing for a run to go on from.
    """
    if not checkpoint.get("optimizer_states"):
        last = path.with_name("last.ckpt")
        instead = str(last) if last != path and last.is_file() else "a run's last.ckpt"
        raise ValueError(
            f"ckpt_path={str(path)!r} holds weights only, no optimizer's state: no run goes on from"
            f" it; use {instead} (task=evaluate takes weights alone)"
        )


def require_algorithm(checkpoint: Mapping[str, Any], name: str) -> None:
    """
    Raises:
        ValueError: the checkpoint is of another algorithm than ``name``.
    """
    made_by = checkpoint.get("algorithm", name)
    if made_by != name:
        raise ValueError(
            f"the checkpoint is of {made_by}, this run is of {name}: repeat the command that it was"
            " made with (algo=...), and add ckpt_path"
        )


def how_far(checkpoint: Mapping[str, Any], path: Path) -> str:
    """``iteration 6, written 2026-11-25 18:40:12``"""
    online = "num_iterations" in checkpoint.get("hyper_parameters", {}).get("config", {})
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    far = f"iteration {done}" if online else f"step {checkpoint['global_step']}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
    return f"{far}, written {when}"


def found(
    ckpt_path: str | Path,
    roots: Iterable[str | Path],
    algorithm: str,
    obstacles: Callable[[Mapping[str, Any], Path], list[str]],
) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that ``ckpt_path`` means, and what it holds; ``last`` as ``newest``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no checkpoint of ``algorithm``, or has no end.
    """

    def in_the_way(checkpoint: Mapping[str, Any], path: Path) -> list[str]:
        made_by = checkpoint.get("algorithm", algorithm)
        return obstacles(checkpoint, path) if made_by == algorithm else [f"it is of {made_by}"]

    if ckpt_path == "last" and is_follower() and LAST in os.environ:
        ckpt_path = os.environ[LAST]  # another run may have saved since
    if ckpt_path == "last":
        path, checkpoint = newest(roots, in_the_way)
        os.environ[LAST] = str(path)
        return path, checkpoint
    path = checkpoint_of(ckpt_path)
    checkpoint = read(path)
    require_algorithm(checkpoint, algorithm)
    return path, checkpoint


def newest(
    roots: Iterable[str | Path], obstacles: Callable[[Mapping[str, Any], Path], list[str]]
) -> tuple[Path, dict[str, Any]]:
    """The ``last.ckpt`` below ``roots`` that was written last, of those without ``obstacles``.

    Raises:
        FileNotFoundError: there is none; the message lists the others, and what is in their way.
    """
    roots = [Path(root).absolute() for root in roots]
    found = {path for root in roots for path in root.glob("**/checkpoints/last.ckpt")}
    others = []
    for path in sorted(found, key=lambda path: -path.stat().st_mtime):
        try:
            checkpoint = read(path)
            problems = obstacles(checkpoint, path)
        except (OSError, ValueError) as error:
            others.append(f"\n  {path}: {error}")
            continue
        if not problems:
            return path, checkpoint
        shown = "; ".join(problems[:3]) + (" ..." if len(problems) > 3 else "")
        others.append(f"\n  {path} ({how_far(checkpoint, path)}): {shown}")
    where = " and ".join(dict.fromkeys(map(str, roots)))
    if not others:
        raise FileNotFoundError(
            f"ckpt_path=last: no checkpoints/last.ckpt below {where}; give the path of a checkpoint"
        )
    more = f"\n  and {len(others) - LISTED} more" if len(others) > LISTED else ""
    raise FileNotFoundError(
        f"ckpt_path=last: no run of this command has saved a checkpoint below {where}. Others:"
        f"{''.join(others[:LISTED])}{more}\nName the one to go on with: ckpt_path=PATH"
    )
