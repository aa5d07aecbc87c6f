"""A job does not outlive what started it: it saves and stops."""

import ctypes
import os
import signal
import sys

PARENT = "RLMODULES_PARENT"
"""Environment variable: the process that a job is not to outlive."""
PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Have the kernel send this process SIGTERM when the one that ``PARENT`` names is no more.

    (A run saves then. The kernel means the *thread* that started it: start jobs from one that
    lives as long as they may. Where there is no such call, as on macOS, a job goes on alone.)
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the kernel was told
        sys.exit(128 + signal.SIGTERM)
