"""Runs a command that does not outlive the process that wanted it: ``supervise.py PID COMMAND...``.

In a session of its own, whose group it ends when it is told to (SIGTERM), when process PID is no
more, however that ended, and when the command itself has ended. (The standard library alone: it is
run by its path.)
"""

import os
import signal
import subprocess
import sys
import time

PATIENCE_S = 10.0
"""What has been asked to end is killed after this."""
LOOK_S = 0.5


def supervise(parent: int, command: list[str]) -> int:
    """The exit status of ``command``."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        return 127
    while child.poll() is None and not asked and os.getppid() == parent:
        time.sleep(LOOK_S)
    ended = child.poll()
    if ended is None:
        child.terminate()  # it alone: it ends its own children in order
        deadline = time.monotonic() + PATIENCE_S
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
    status = ended if ended is not None else 0
    print(f"(the server has ended: exit status {status})", flush=True)
    os.killpg(0, signal.SIGKILL)  # what it has left behind, and this
    return status


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
