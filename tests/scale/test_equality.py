"""Two processes take the steps of one: every algorithm, by ``ddp`` and by ``fsdp``, with and
without LoRA, with responses of very unequal length."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from equality_helpers import RUNS, differences

HELPERS = Path(__file__).parents[1]
NAMES = [*RUNS, *(f"{name}+lora" for name in RUNS), "ppo+again", "dpo+lora+again"]
"""``again``: activations are computed again in the backward pass (``gradient_checkpointing``)."""


def train(name, strategy, processes, folder):
    environment = {"PYTHONPATH": f"{HELPERS}{os.pathsep}{HELPERS.parent}", "OMP_NUM_THREADS": "1"}
    script = HELPERS / "equality_helpers.py"
    done = subprocess.run(
        [sys.executable, str(script), name, strategy, str(processes), str(folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Of one process, by name, once."""
    found = {}

    def of(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("alone")
            found[name] = train(name, "one", 1, folder)
        return found[name]

    return of


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_take_the_steps_of_one(name, strategy, alone, tmp_path):
    weights, metrics = differences(alone(name), train(name, strategy, 2, tmp_path))
    worst = sorted(metrics.items(), key=lambda row: -row[1])[:3]
    print(f"{name} {strategy}: weights {weights:.1e}, metrics {worst}")
    assert weights < 2e-5, weights
    assert worst[0][1] < 1e-3, worst
