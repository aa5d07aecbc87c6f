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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of all runs by a strategy."""
    found = {}

    def by(strategy, processes):
        if strategy not in found:
            found[strategy] = tmp_path_factory.mktemp(strategy)
            path = f"{HELPERS}{os.pathsep}{HELPERS.parent}"
            told = [",".join(NAMES), strategy, str(processes), str(found[strategy])]
            done = subprocess.run(
                [sys.executable, str(HELPERS / "equality_helpers.py"), *told],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=3000,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        return found[strategy]

    return by


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_take_the_steps_of_one(name, strategy, trained):
    weights, metrics = differences(trained("one", 1) / name, trained(strategy, 2) / name)
    worst = sorted(metrics.items(), key=lambda row: -row[1])[:3]
    said = ", ".join(f"{metric} {apart:.1e}" for metric, apart in worst)
    print(f"{name} {strategy}: weights {weights:.1e}; {said}")
    # A twentieth of Adam's first step (learning rate 1e-3), whose sign a gradient of the size of a
    # rounding error decides; metrics come from all weights, and know of no sign.
    assert weights < 5e-5, weights
    assert worst[0][1] < 5e-5, worst
