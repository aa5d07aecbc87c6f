"""A run on two machines that torchrun starts: two network namespaces, with a cable between them.

Needs root and ``ip`` (iproute2).
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 20
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
)


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


class Machines:
    """Two hosts with one address each."""

    def __init__(self, folder):
        self.folder, self.names = folder, [f"rl{uuid.uuid4().hex[:6]}{i}" for i in range(2)]
        self.started = []
        a, b = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", f"v{a}", "netns", a, "type", "veth", "peer", "name", f"v{b}", "netns", b)
        for number, name in enumerate(self.names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", f"v{name}")
            for device in ("lo", f"v{name}"):
                ip("-n", name, "link", "set", device, "up")

    def start(self, *told, processes=1):
        """torchrun on both."""
        for rank, name in enumerate(self.names):
            environment = {
                "GLOO_SOCKET_IFNAME": f"v{name}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            }  # fmt: skip
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run",
                       "--nnodes=2", f"--node-rank={rank}", f"--nproc-per-node={processes}",
                       "--master-addr=10.77.0.1", "--master-port=29577", str(ROOT / "train.py"),
                       f"trainer.devices={processes}", "trainer.num_nodes=2", *told]  # fmt: skip
            log = (self.folder / f"node{rank}.log").open("a")
            self.started.append(
                subprocess.Popen(command, cwd=self.folder, env=os.environ | environment,
                                 stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            )  # fmt: skip
        return self.started[-2:]

    def kill(self, number):
        """All processes of a machine, at once: torchrun's children are in sessions of their own."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.names[number]], capture_output=True, text=True, check=True
        )
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def cut(self):
        ip("-n", self.names[0], "link", "set", f"v{self.names[0]}", "down")

    def mend(self):
        ip("-n", self.names[0], "link", "set", f"v{self.names[0]}", "up")

    def said(self):
        return "\n".join((self.folder / f"node{i}.log").read_text()[-3000:] for i in range(2))

    def remove(self):
        for number, name in enumerate(self.names):
            self.kill(number)
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.fixture
def machines(tmp_path):
    found = Machines(tmp_path)
    yield found
    found.remove()


def settings(strategy, iterations):
    return [
        f"trainer={strategy}", f"trainer.strategy.timeout_s={TIMEOUT_S}", "algo=ppo", "model=tiny",
        "algo.device=cpu", "trainer.precision=32-true", "reward=length", "logger=none",
        "algo.batch_size=8", "algo.mini_batch_size=4", "algo.gradient_accumulation_steps=2",
        "algo.max_new_tokens=8", "data.eval_size=2", "algo.eval_every=5",
        "algo.save_every=1", f"algo.num_iterations={iterations}", "algo.learning_rate=1e-4",
        "hydra.run.dir=run",
    ]  # fmt: skip


def wait(processes, seconds):
    ends = time.monotonic() + seconds
    while any(p.poll() is None for p in processes) and time.monotonic() < ends:
        time.sleep(0.2)
    return [p.poll() for p in processes]


def iteration_of(path):
    for _ in range(50):
        try:
            return torch.load(path, weights_only=True)["loops"]["fit_loop"]["epoch_progress"][
                "current"
            ]["processed"]
        except (FileNotFoundError, RuntimeError):
            time.sleep(0.2)
    raise AssertionError(f"{path} cannot be read")


def wait_for_iterations(machines, number):
    last, ends = machines.folder / "run" / "checkpoints" / "last.ckpt", time.monotonic() + 400
    while not last.is_file() or iteration_of(last) < number:
        assert time.monotonic() < ends, machines.said()
        assert all(p.poll() is None for p in machines.started[-2:]), machines.said()
        time.sleep(0.2)
    return last


@pytest.mark.parametrize("loss", ["the second killed", "the first killed", "the link cut"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_lost_machine_ends_the_run_in_time_and_it_goes_on(machines, strategy, loss):
    both = machines.start(*settings(strategy, 10_000))
    last = wait_for_iterations(machines, 2)
    began = time.monotonic()
    if loss == "the link cut":
        machines.cut()
        left = both
    else:
        gone = 0 if loss == "the first killed" else 1
        machines.kill(gone)
        left = [both[1 - gone]]
    status = wait(left, TIMEOUT_S + 60)
    took = time.monotonic() - began
    assert None not in status and 0 not in status, (status, machines.said())
    print(f"{strategy}, {loss}: ended after {took:.0f} s of {TIMEOUT_S} s timeout")
    assert took < TIMEOUT_S + 45
    done = iteration_of(last)
    for number in range(2):  # nothing is left of it
        machines.kill(number)
    machines.mend()
    again = machines.start(*settings(strategy, done + 2), "ckpt_path=run")
    assert wait(again, 400) == [0, 0], machines.said()
    assert iteration_of(last) == done + 2
