"""A part of ``benchmarks/kill_campaign.py``: killed runs end as those that were left in peace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from process_helpers import warm_python

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import kill_campaign

SCRIPT = Path(kill_campaign.__file__)


def test_killed_runs_end_as_those_that_were_left_in_peace(tmp_path):
    results = tmp_path / "results.jsonl"
    only = "^ppo-windows$"
    done = subprocess.run(
        [warm_python(), str(SCRIPT), "--only", only, "--schedules", "1", "--to", str(results)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "1 of 1 schedules equal to the last bit" in done.stdout, (
        done.stdout + done.stderr[-3000:]
    )
    rows = list(map(json.loads, results.read_text().splitlines()))
    assert all(kill_campaign.kills(row["story"]) >= 1 for row in rows)


@pytest.mark.parametrize(
    ("left", "right", "found"),
    [
        ({"a": [torch.ones(2)]}, {"a": [torch.ones(2)]}, []),
        ({"a": [torch.ones(2)]}, {"a": [torch.ones(2) + 1e-7]}, [".a[0]: tensors"]),
        ({"a": 1.0}, {"b": 1.0}, [".a is missing on one side", ".b is missing on one side"]),
        ({"a": [1, 2]}, {"a": [1]}, [".a: 2 and 1 long"]),
        ({"time/s": 1.0, "loss": 1.0}, {"time/s": 2.0, "loss": 1.5}, [".loss: 1.0 and 1.5"]),
        ({"a": float("nan")}, {"a": float("nan")}, []),
    ],
)
def test_a_difference_is_found_and_named(left, right, found):
    assert sorted(kill_campaign.differences(left, right)) == found


def test_there_are_20_configurations_of_which_4_are_of_two_processes():
    found = kill_campaign.configurations()
    assert len(found) == 20
    assert sum(processes == 2 for _, processes in found.values()) == 4


def test_schedules_are_drawn_from_their_name_and_end_in_every_way():
    schedules = [kill_campaign.blows(f"dpo {n}", 3.0) for n in range(50)]
    assert schedules[:3] == [kill_campaign.blows(f"dpo {n}", 3.0) for n in range(3)]
    assert {len(schedule) for schedule in schedules} == {2, 3, 4}
    assert {(b["when"], b["signal"]) for s in schedules for b in s} == {
        (when, number) for when in ("time", "save", "export") for number in (2, 9, 15)
    }
