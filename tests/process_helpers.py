"""A script that trains, run by one process and by two."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import torch

HERE = Path(__file__).parent


def alone_and_together(folder, script, *arguments):
    """What a script saves as ``1.pt`` and ``2.pt``, and what it wrote to stderr the second time.

    It is given the number of processes, ``arguments`` and ``folder``. Alone it runs in this
    process, which has imported everything.
    """
    path = folder / "script.py"
    path.write_text(script)
    with mock.patch.object(sys, "argv", [str(path), "1", *arguments, str(folder)]):
        runpy.run_path(str(path), run_name="__main__")
    environment = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path), "2", *arguments, str(folder)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (folder / "2.pt").exists(), done.stderr[-3000:]
    one, two = (torch.load(folder / f"{n}.pt", weights_only=True) for n in (1, 2))
    return one, two, done.stderr
