"""How the machine is shared out between the jobs of a sweep."""

import pytest
from omegaconf import OmegaConf

from rlmodules.sweeping import slots
from rlmodules.sweeping.launcher import make_runner
from rlmodules.sweeping.slots import environments


def shared(count, each, gpus, cores=8, **more):
    return [
        (own.get("CUDA_VISIBLE_DEVICES"), own["OMP_NUM_THREADS"])
        for own in environments(count, each, gpus=gpus, cores=cores, **more)
    ]


@pytest.mark.parametrize(
    ("count", "each", "gpus", "expected"),
    [
        (None, None, [], [(None, "4"), (None, "4")]),
        (None, 2, [], [(None, "4")]),
        (4, None, [], [(None, "2")] * 4),
        (100, None, [], [(None, "1")] * 100),
        (None, None, ["0", "1"], [("0", "4"), ("1", "4")]),
        (None, 2, ["0", "1", "5", "7", "9"], [("0,1", "2"), ("5,7", "2")]),
        (1, None, ["3", "4"], [("3", "8")]),
        (3, 1, ["0", "1"], [("0", "2"), ("1", "2"), ("0", "2")]),
    ],
)
def test_each_slot_has_its_devices_and_its_share_of_the_cores(count, each, gpus, expected):
    assert shared(count, each, gpus) == expected


def test_a_small_machine_has_one_slot_and_a_users_own_threads_hold():
    assert shared(None, None, [], cores=2) == [(None, "2")]
    assert shared(2, None, [], threads="3") == [(None, "3")] * 2


@pytest.mark.parametrize(
    ("count", "each", "gpus", "said"),
    [
        ("x", None, [], r"hydra\.launcher\.slots='x' must be a whole number"),
        (0, None, [], r"hydra\.launcher\.slots=0 must be a whole number"),
        (None, -1, [], r"hydra\.launcher\.devices_per_job=-1 must be"),
        (None, 3, ["0", "1"], r"devices_per_job=3, but this machine shows 2 GPUs \(0, 1\)"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(count, each, gpus, said):
    with pytest.raises(ValueError, match=said):
        environments(count, each, gpus=gpus, cores=8)


@pytest.mark.parametrize(
    ("visible", "found"),
    [("", []), ("-1", []), ("0", ["0"]), ("2, 0", ["2", "0"]), ("1,-1,2", ["1"])],
)
def test_the_gpus_are_those_that_a_process_sees(monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots.gpus() == found


def test_without_the_variable_the_driver_is_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slots.gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA'\n")
    tool.chmod(0o755)
    assert slots.gpus() == ["0", "1"]


@pytest.mark.parametrize("option", ["slots", "devices_per_job"])
@pytest.mark.parametrize("device", [None, "cuda:1", "cpu"])
def test_none_is_no_word_for_the_default(option, device):
    config = OmegaConf.create({"algo": {"device": device}, "trainer": {"devices": 2}})
    with pytest.raises(ValueError, match=rf"hydra\.launcher\.{option}=0 must be a whole number"):
        make_runner(config, **{option: 0})
