"""A checkpoint that each process wrote its share of is gone on from by any number of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from equality_helpers import differences
from safetensors.torch import load_file

from rlmodules.callbacks import AtomicCheckpointIO

HELPERS = Path(__file__).parents[1]
NAMES = ["ppo+sixths", "dpo+sixths", "dpo+lora+sixths"]


def train(strategy, processes, folder, *before):
    path = f"{HELPERS}{os.pathsep}{HELPERS.parent}"
    told = [",".join(NAMES), strategy, str(processes), str(folder), *map(str, before)]
    done = subprocess.run(
        [sys.executable, str(HELPERS / "equality_helpers.py"), *told],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Two processes, to the end; what they had in the middle is kept."""
    return train("fsdp", 2, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module", params=[("fsdp", 2), ("one", 1), ("ddp", 2), ("fsdp", 3)], ids=str)
def gone_on(request, straight, tmp_path_factory):
    """Others, from the middle to the end."""
    folder = tmp_path_factory.mktemp("-".join(map(str, request.param)))
    return request.param, train(*request.param, folder, straight)


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_processes_goes_on(name, straight, gone_on):
    who, folder = gone_on
    assert (straight / name / "checkpoints" / "middle.ckpt").is_file()
    weights, metrics = differences(straight / name, folder / name)
    moments = largest_difference(*(end(f / name)["optimizer_states"] for f in (straight, folder)))
    exported = largest_difference(*(export(f / name) for f in (straight, folder)))
    worst = max(metrics.items(), key=lambda row: row[1])
    print(f"{name} by {who}: weights {weights:.1e}, moments {moments:.1e}, {worst}")
    # Those who began are equal to the last bit; to others a twentieth of Adam's step, see
    # test_equality.py. Metrics are of sums of 300 log-probabilities: 1e-4 is their last digit.
    most, most_of_metrics = (0.0, 0.0) if who == ("fsdp", 2) else (5e-5, 2e-4)
    assert weights <= most and moments <= most and exported <= most
    assert worst[1] <= most_of_metrics, worst


def end(folder):
    return AtomicCheckpointIO().load_checkpoint(folder / "end.ckpt")


def export(folder):
    found = [load_file(path) for path in sorted((folder / "model").rglob("*.safetensors"))]
    assert found
    return found


def largest_difference(one, other):
    """Of all numbers in nested dicts, lists and tensors."""
    if isinstance(one, torch.Tensor):
        apart = (one.double() - other.double()).abs()
        return float(apart.max()) if apart.numel() else 0.0
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((largest_difference(one[k], other[k]) for k in one), default=0.0)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return max((largest_difference(a, b) for a, b in pairs), default=0.0)
    return abs(one - other) if isinstance(one, int | float) else 0.0
