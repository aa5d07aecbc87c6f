"""A script that trains, run by one process and by two."""

import atexit
import functools
import os
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch

HERE = Path(__file__).parent
PATHS = f"{HERE}{os.pathsep}{HERE.parent}"
LIMIT_S = 240


def alone_and_together(folder, script, *arguments):
    """What a script saves as ``1.pt`` and ``2.pt``, and what it wrote the second time.

    It is given the number of processes, ``arguments`` and ``folder``. Alone it runs in this
    process, together by ``warm_python``.
    """
    path = folder / "script.py"
    path.write_text(script)
    with mock.patch.object(sys, "argv", [str(path), "1", *arguments, str(folder)]):
        runpy.run_path(str(path), run_name="__main__")
    written = forked([str(path), "2", *arguments, str(folder)], folder, processes=2)
    assert (folder / "2.pt").exists(), written[-3000:]
    one, two = (torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2))
    return one, two, written


def forked(argv, folder, *, processes):
    """What a script writes that several processes run, as a launcher would start them.

    Raises:
        AssertionError: one of them fails, or they take longer than ``LIMIT_S``.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    logs = [Path(f"{folder}/log-{rank}.txt") for rank in range(processes)]
    running = []
    for rank, log in enumerate(logs):
        environment = os.environ | place | {
            "NODE_RANK": "0", "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "PYTHONPATH": PATHS,
        }  # fmt: skip
        with log.open("w") as file:
            running.append(subprocess.Popen([warm_python(ours=True), *argv], env=environment,
                                            cwd=folder, stdout=file, stderr=file))  # fmt: skip
    end = time.monotonic() + LIMIT_S
    while any(p.poll() is None for p in running) and not any(p.poll() for p in running):
        if time.monotonic() > end:
            break
        time.sleep(0.02)
    statuses = [process.poll() for process in running]
    for process in running:  # one that fails ends the others
        process.kill()
        process.wait()
    written = "\n".join(log.read_text() for log in logs)
    assert None not in statuses or any(statuses), f"not done in {LIMIT_S} s:\n{written[-3000:]}"
    assert set(statuses) == {0}, written[-3000:]
    return written


@functools.cache
def warm_python(ours=False):
    """The path of a python that starts at once: the libraries are there, and ``ours``, too.

    SIGINT and SIGTERM are passed on; one that is killed is gone a moment later than it seems.
    """
    folder = tempfile.mkdtemp(prefix="warm")
    script, place = HERE / "warm_python.py", f"{folder}/socket"
    server = subprocess.Popen(
        [sys.executable, script, place, "serve", *(["ours"] if ours else [])],
        env=os.environ
        | {"PYTHONPATH": PATHS if ours else "", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg",
           "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    atexit.register(_end, server, folder)
    while not Path(place).exists():
        assert server.poll() is None
        time.sleep(0.01)
    python = Path(folder) / "python"
    words = shlex.join([sys.executable, "-S", "-E", str(script), place])
    python.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    python.chmod(0o755)
    return str(python)


def _end(server, folder):
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)
