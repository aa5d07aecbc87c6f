"""The server's process: it never outlives the run, whatever ends that; what it says is shown."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import config
from safetensors import safe_open
from safetensors.torch import save_file

from rlmodules import PPO
from rlmodules.engines.errors import SamplerError
from rlmodules.engines.server import Server
from rlmodules.engines.vllm import VLLM
from rlmodules.inside_vllm.rlmodules_weights import TakesWeights

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(os.getpid(), inner.pid, flush=True)
time.sleep(100)
"""
MEEK = STUBBORN.replace("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", "")


def pids_in(log, count=2):
    """What a server of above prints first."""
    for _ in range(200):
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        found = [line for line in lines if len(line) == count and line[0].isdigit()]
        if found:
            return list(map(int, found[0]))
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def all_end(pids, within_s=20):
    deadline = time.monotonic() + within_s
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def test_stopping_ends_it_and_what_it_started(tmp_path):
    server = Server([sys.executable, "-c", MEEK], os.environ, tmp_path / "log")
    pids = pids_in(tmp_path / "log")
    server.require_running()
    began = time.monotonic()
    server.stop()
    assert all_end(pids, 1) and time.monotonic() - began < 5
    with pytest.raises(SamplerError, match="has ended"):
        server.require_running()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_does_not_outlive_the_process_that_wanted_it(tmp_path, number):
    code = f"""
import os, sys, time; from pathlib import Path
from rlmodules.engines.server import Server
Server([sys.executable, "-c", {MEEK!r}], os.environ, Path({str(tmp_path / "log")!r}))
time.sleep(100)
"""
    run = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    pids = pids_in(tmp_path / "log")
    run.send_signal(number)
    run.wait()
    assert all_end(pids)


def test_what_does_not_end_when_asked_is_killed(tmp_path, monkeypatch):
    copy = tmp_path / "supervise.py"
    source = Path(__file__).parents[2] / "rlmodules/engines/supervise.py"
    copy.write_text(source.read_text().replace("PATIENCE_S = 10.0", "PATIENCE_S = 0.3"))
    monkeypatch.setattr("rlmodules.engines.server.SUPERVISE", copy)
    server = Server([sys.executable, "-c", STUBBORN], os.environ, tmp_path / "log")
    pids = pids_in(tmp_path / "log")
    os.kill(pids[0], signal.SIGSTOP)  # nor when it hangs
    server.stop()
    assert all_end(pids, 5)


@pytest.mark.parametrize(
    "command", [[sys.executable, "-c", "raise ValueError('no room')"], ["x-no"]]
)
def test_why_it_ended_is_shown(tmp_path, command):
    server = Server(command, os.environ, tmp_path / "sampler" / "log")
    with pytest.raises(SamplerError, match="has ended; its log") as error:
        for _ in range(200):
            time.sleep(0.05)
            server.require_running()
    said = "No such file" if command == ["x-no"] else "ValueError: no room"
    assert said in str(error.value)


def test_options_that_make_no_sense_are_refused(tmp_path):
    here = sys.executable
    for given, said in (
        ({"command": "./no-such-python -m x"}, r"sampler\.command: there is no \./no-such-python"),
        ({"command": " "}, r"sampler\.command is empty"),
        ({"url": "localhost:80"}, r"sampler\.url='localhost:80' is no address"),
        ({"url": "http://h:1", "command": here}, r"sampler\.command=.*set one of the two"),
        ({"url": "http://h:1", "arguments": ["-x"]}, r"sampler\.arguments=.*set one of the two"),
        ({"command": here, "model": "m"}, r"sampler\.model='m' names a model at sampler\.url"),
        ({"command": here, "dtype": "int8"}, r"sampler\.dtype='int8': use one of float32, bf"),
        ({"command": here, "weights_dir": f"{tmp_path}/x"}, r"weights_dir=.*no such folder"),
        ({"command": here, "timeout_s": 0}, r"sampler\.timeout_s=0 must be a positive number"),
        ({"command": here, "start_timeout_s": -1.0}, r"start_timeout_s=-1.0 must be a positive"),
        ({"command": here, "max_mismatch": float("nan")}, r"max_mismatch=nan must be a positive"),
    ):
        with pytest.raises(ValueError, match=said):
            VLLM(**given)
    assert VLLM(command=f"{here} -m vllm").program == [here, "-m", "vllm"]


SAYS = """
import json, os, pathlib, sys, time
told = {"argv": sys.argv[1:], "env": dict(os.environ)}
pathlib.Path(os.environ["SAID"]).write_text(json.dumps(told))
time.sleep(100)
"""


def test_a_server_of_the_runs_own_is_told_all_that_it_has_to_know(tmp_path, monkeypatch):
    said = tmp_path / "said.json"
    (tmp_path / "server.py").write_text(SAYS)
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("SAID", str(said))
    module, run = PPO(config()), tmp_path / "run"
    vllm = VLLM(
        command=f"{sys.executable} {tmp_path}/server.py",
        arguments=["--more=1"],
        dtype="bfloat16",
        weights_dir=str(tmp_path / "shared"),
        start_timeout_s=0.1,
    )
    with vllm.serving(module, run):
        with pytest.raises(SamplerError, match=r"not ready after 0\.1 s .*start_timeout_s"):
            module.sampler([torch.tensor([40])], module.sampling, [1])
        while not (said.exists() and said.read_text()):
            time.sleep(0.05)
        told = json.loads(said.read_text())
        options = dict(word.split("=", 1) for word in told["argv"])
        home = Path(options.pop("--model"))
        assert home.parent.parent == tmp_path / "shared"
        (weights,) = home.glob("*.safetensors")
        with safe_open(str(weights), "pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert (home / "tokenizer.json").exists() and int(options.pop("--port")) > 0
        assert options == {
            "--served-model-name": "policy",
            "--host": "127.0.0.1",
            "--dtype": "bfloat16",
            "--logprobs-mode": "processed_logprobs",
            "--generation-config": "vllm",
            "--worker-extension-cls": "rlmodules_weights.TakesWeights",
            "--more": "1",
        }
        environment = told["env"]
        assert environment["VLLM_SERVER_DEV_MODE"] == "1"
        assert (Path(environment["PYTHONPATH"]) / "rlmodules_weights.py").exists()
    assert not list((tmp_path / "shared").iterdir())  # what was handed over is removed
    assert (run / "sampler" / "vllm.log").exists()


# ------------------------------------------------------------ inside vLLM's worker


class UnquantizedEmbeddingMethod:
    def process_weights_after_loading(self, module):
        module.packed += 1


class Worker(TakesWeights):
    """As vLLM's, as far as the extension asks it."""

    def __init__(self):
        method = UnquantizedEmbeddingMethod()
        self.head, self.layer = (SimpleNamespace(packed=0, quant_method=q) for q in (method, None))
        self.loaded = {}

    def reload_weights(self, weights_iterator):
        self.loaded = dict(weights_iterator)
        if "bad" in self.loaded:
            raise KeyError("bad")

    def get_model(self):
        return SimpleNamespace(modules=lambda: [self.layer, self.head])


def test_the_worker_takes_every_tensor_and_packs_the_head_again(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.full((1,), 7.0)}, tmp_path / "model-2.safetensors")
    worker = Worker()
    assert worker.take_weights(str(tmp_path)) == {"tensors": 3}
    assert worker.loaded.keys() == {"a", "b", "c"} and worker.loaded["c"].item() == 7
    assert (worker.head.packed, worker.layer.packed) == (1, 0)


def test_the_worker_tells_what_went_wrong_instead_of_ending(tmp_path):
    assert "no safetensors in /nowhere" in Worker().take_weights("/nowhere")["error"]
    save_file({"bad": torch.ones(2)}, tmp_path / "model.safetensors")
    assert Worker().take_weights(str(tmp_path)) == {"error": "KeyError: 'bad'"}
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "Error" in Worker().take_weights(str(tmp_path))["error"]


def test_the_worker_imports_nothing_of_ours():
    """By its folder alone on the path, as vLLM has it."""
    folder = Path(__file__).parents[2] / "rlmodules" / "inside_vllm"
    code = (
        "import sys, rlmodules_weights as w; assert 'rlmodules' not in sys.modules; print(w.PACKED)"
    )
    environment = {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True
    )
    assert said.stdout == "UnquantizedEmbeddingMethod\n", said.stderr
