"""A python that has imported the libraries already; ``process_helpers.warm_python`` makes it.

    warm_python.py SOCKET serve [ours]    imports, and forks whenever it is asked to
    warm_python.py SOCKET ARGUMENTS       what python ARGUMENTS does, in such a fork

A fork begins like a process of its own, ten seconds later: the server has started no thread and
computed nothing. It gets the signals of the process that asked for it, and is ended with it.
"""

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

PASSED_ON = (signal.SIGINT, signal.SIGTERM)


def ask(path: str, arguments: list[str]) -> int:
    """Have a fork of the server be this process; its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        job = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        content = json.dumps(job).encode()
        socket.send_fds(server, [len(content).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(content)
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: server.send(bytes([number])))
        status = server.recv(8)
    code = int.from_bytes(status, "big", signed=True) if status else 70
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def prepare(ours: bool) -> None:
    import bitsandbytes
    import hydra
    import lightning.pytorch.loggers
    import matplotlib.pyplot
    import peft
    import torch
    import transformers.models.llama.modeling_llama

    if ours:
        import rlmodules.trainers.online  # noqa: F401
    torch.set_num_threads(1)
    del bitsandbytes, hydra, lightning, matplotlib, peft, transformers


def serve(path: str, ours: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        prepare(ours)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                attend(client)
                return
            client.close()


def attend(client: socket.socket) -> None:
    """In a fork: have another run the job, and say how that ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(client, 8, 3)
    content = b""
    while len(content) < int.from_bytes(length, "big"):
        content += client.recv(1 << 20)
    child = os.fork()
    if not child:
        client.close()
        run(json.loads(content), files)
        return
    watched = os.pidfd_open(child)
    for file in files:
        os.close(file)
    while watched not in select.select([watched, client], [], [])[0]:
        number = client.recv(1)  # none: whoever asked was ended
        os.kill(child, number[0] if number else signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        client.sendall(code.to_bytes(8, "big", signed=True))
    os._exit(0)


def run(job: dict, files: list[int]) -> None:
    """What python does with these arguments."""
    import random
    import runpy
    import types

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    random.seed()
    first, *rest = job["arguments"]
    before = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    here = os.path.dirname(os.path.abspath(first)) if first not in ("-c", "-m") else ""
    sys.path[:1] = [here, *before]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first.startswith("-"):
        raise SystemExit(f"warm_python.py knows no {first}")
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    place, *words = sys.argv[1:]
    if words[:1] == ["serve"]:
        serve(place, "ours" in words)
    else:
        sys.exit(ask(place, words))
