"""Forks processes that have imported everything: what ``process_helpers`` starts once a session.

Reads jobs from its standard input, a line of JSON each, and answers each with the exit statuses of
its processes. It starts no thread and computes nothing, so that its forks begin like a process of
their own, ten seconds later.
"""

import json
import os
import runpy
import signal
import socket
import sys
import traceback


def prepare() -> None:
    import lightning.pytorch.loggers
    import matplotlib.pyplot
    import peft
    import torch
    import transformers.models.llama.modeling_llama

    import rlmodules.trainers.online

    torch.set_num_threads(1)
    del lightning, matplotlib, peft, transformers, rlmodules


def fork(job: dict, rank: int, port: int) -> int:
    """Start a process of the job, as a launcher of distributed runs would; its id."""
    if child := os.fork():
        return child
    status = 70
    try:
        log = os.open(f"{job['log']}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(job["folder"])
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["processes"])}
        sys.argv = job["argv"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(job: dict) -> list[int]:
    """Exit statuses in the order in which processes end; one that fails ends the others."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    left = {fork(job, rank, port) for rank in range(job["processes"])}
    statuses = []
    while left:
        child, status = os.wait()
        left.discard(child)
        statuses.append(os.waitstatus_to_exitcode(status))
        if statuses[-1]:
            for other in left:
                os.kill(other, signal.SIGKILL)
    return statuses


if __name__ == "__main__":
    prepare()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
