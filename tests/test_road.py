"""The road of ``examples/road``: its commands, one after the other, on the tiny model."""

import os
import runpy
import shlex
import subprocess

import pytest
from reading_helpers import ROOT

ROAD = ROOT / "examples" / "road"
SMALL = ["experiment=smoke", "algo.device=cpu", "trainer.precision=32-true",
         "logger=none"]  # fmt: skip
ONLINE = ["algo.num_iterations=1", "algo.batch_size=16", "algo.mini_batch_size=8",
          "algo.eval_every=1", "algo.max_new_tokens=4", "data.eval_size=4"]  # fmt: skip
STAGES = ["sft", "reward", "ppo", "grpo", "dpo"]
JUDGED = ["judged/start", *(f"judged/{name}" for name in STAGES if name != "reward")]


def calls(folder, *overrides):
    """Arguments of each call of python by the script, that itself is not run."""
    say = 'python() { printf "%q " "$@"; echo; }; export -f python; bash "$0" "$@"'
    script = str(ROAD / "road.sh")
    done = subprocess.run(["bash", "-c", say, script, *overrides], text=True, capture_output=True,
                          env=os.environ | {"ROAD": str(folder)}, check=True)  # fmt: skip
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("== ")]


def test_each_stage_goes_on_from_the_adapters_of_the_one_before(tmp_path, command, capsys):
    road = tmp_path / "road"
    *runs, table = calls(road, *SMALL)
    names = [run[-1].removeprefix(f"hydra.run.dir={road}/") for run in runs]
    assert names == [*STAGES, *JUDGED]
    for name, (program, *arguments) in zip(names, runs, strict=True):
        assert program == "train.py" and arguments[-1 - len(SMALL) : -1] == SMALL
        is_online = any(word in ("algo=ppo", "algo=grpo") for word in arguments)
        command(*arguments, *(ONLINE if is_online else []))
        assert (road / name / "result.json").exists()
    for name in ("sft", "ppo", "grpo", "dpo"):
        assert (road / name / "model" / "adapter_config.json").exists()
    assert calls(road, *SMALL) == [table]  # what is complete is not run again
    assert table == ["examples/road/table.py", str(road)]
    lines = list(runpy.run_path(str(ROAD / "table.py"))["lines"](road))
    cells = [line.strip("|").split("|") for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert [row[0].strip(" `") for row in cells[2:]] == ["as it came", *STAGES]
    assert all(cell.strip() for row in cells[4:] for cell in row if "reward" not in row[0])


def test_a_table_of_half_a_road_names_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match=r"evaluation.json is missing: run examples/road/road.sh"):
        list(runpy.run_path(str(ROAD / "table.py"))["lines"](tmp_path))


def test_a_stage_that_was_interrupted_goes_on(tmp_path):
    checkpoint = tmp_path / "ppo" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    going = [run for run in calls(tmp_path) if f"ckpt_path={tmp_path / 'ppo'}" in run]
    assert [run[-1] for run in going] == [f"hydra.run.dir={tmp_path / 'ppo'}"]


def test_a_stage_that_was_asked_for_otherwise_is_refused(tmp_path):
    """Complete, it would be left as it is, and the table be of another road than was asked for."""
    calls(tmp_path, "seed=1")
    assert "seed=2" in calls(tmp_path, "seed=2")[0]  # nothing had been written
    calls(tmp_path, "seed=1")
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "result.json").touch()
    assert "algo=reward" in calls(tmp_path, "seed=1")[0]
    with pytest.raises(subprocess.CalledProcessError) as refused:
        calls(tmp_path, "seed=2")
    assert refused.value.stdout == "" and refused.value.returncode == 1
    assert f"{tmp_path}/sft was asked for by other words" in refused.value.stderr
    assert "seed=1\n" in refused.value.stderr and "ROAD=again" in refused.value.stderr


def test_a_stage_that_was_made_from_another_model_than_is_there_is_refused(tmp_path):
    """One of the first is deleted and made anew: what came of it is of another road."""
    model = tmp_path / "sft" / "model" / "adapter_model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"first")
    (tmp_path / "sft" / "result.json").touch()
    assert "algo=reward" in calls(tmp_path)[0]
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "result.json").touch()
    model.touch()  # as a copy of the folder may
    assert "algo=ppo" in calls(tmp_path)[0]
    model.write_bytes(b"second")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        calls(tmp_path)
    assert refused.value.stdout == ""
    assert f"{tmp_path}/reward was made from other models than are there" in refused.value.stderr
    assert refused.value.stderr.count(str(model)) == 2
    assert f"made anew: rm -r {tmp_path}/reward\n" in refused.value.stderr
