"""A script that trains, run by one process and by two."""

import atexit
import functools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from unittest import mock

import torch

HERE = Path(__file__).parent
LIMIT_S = 240


def alone_and_together(folder, script, *arguments):
    """What a script saves as ``1.pt`` and ``2.pt``, and what it wrote the second time.

    It is given the number of processes, ``arguments`` and ``folder``. Alone it runs in this
    process, together in forks of one that has imported everything (``fork_server``).
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
    server, log = _server(), f"{folder}/log"
    job = {"argv": argv, "folder": str(folder), "processes": processes, "log": log}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    ready, _, _ = select.select([server.stdout], [], [], LIMIT_S)
    answer = server.stdout.readline() if ready else ""
    if not answer:
        _end(server)
        _server.cache_clear()
    logs = [Path(f"{log}-{rank}.txt") for rank in range(processes)]
    written = "\n".join(path.read_text() for path in logs if path.exists())
    assert answer, f"not done in {LIMIT_S} s:\n{written[-3000:]}"
    assert set(json.loads(answer)) == {0}, written[-3000:]
    return written


@functools.cache
def _server():
    server = subprocess.Popen(
        [sys.executable, str(HERE / "fork_server.py")],
        env=os.environ
        | {
            "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(_end, server)
    return server


def _end(server):
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
