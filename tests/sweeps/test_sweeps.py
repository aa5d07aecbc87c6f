"""Whole sweeps, as one types them, for minutes: ``make test-sweeps``."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlmodules.sweeping.jobs import read_failure, read_progress, read_result

ROOT = Path(__file__).parents[2]
OPTIONS = [
    "experiment=smoke",
    "algo.device=cpu",
    "logger=none",
    "trainer.precision=32-true",
    "algo.value_warmup_iterations=0",
    "algo.num_iterations=4",
    "hydra.launcher.slots=2",
]
TWO = [*OPTIONS, "algo.learning_rate=1e-3,1e-2"]
NAMES = ["lr=1e-3", "lr=0.01"]
PATIENCE = 600


def begin(folder, *arguments):
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process, status=0):
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, said[-4000:]
    return said


def sweep(folder, *arguments, status=0):
    """What a sweep says, in ``folder/all``."""
    return end(begin(folder, *arguments, "hydra.sweep.dir=all"), status)


def until(condition, process=None):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        assert process is None or process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.05)


def weights(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def require_equal(ours, theirs):
    for name in NAMES:
        left, right = (weights(place / "all" / name) for place in (ours, theirs))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
        assert read_result(ours / "all" / name) == read_result(theirs / "all" / name)


def starts(folder):
    """How often a job was started."""
    return sum(line.startswith("$ ") for line in (folder / "job.log").read_text().splitlines())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A sweep that was left in peace."""
    place = tmp_path_factory.mktemp("undisturbed")
    said = sweep(place, *TWO)
    for name in NAMES:
        assert f"{name} is done: val/reward" in said and starts(place / "all" / name) == 1
    assert "2 of 2 jobs are done" in said
    return place


LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
    "basic": ["hydra/launcher=basic"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_other_launchers_do_the_same(launcher, undisturbed, tmp_path):
    options = [option for option in TWO if not option.startswith("hydra.launcher.")]
    said = sweep(tmp_path, *options, *LAUNCHERS[launcher])
    assert "2 of 2 jobs are done" in said
    require_equal(tmp_path, undisturbed)
    if launcher != "basic":
        for name in NAMES:
            assert starts(tmp_path / "all" / name) == 1
            assert " -m " not in (tmp_path / "all" / name / "job.log").read_text()


def test_another_sweeper_can_have_jobs_run_as_processes(tmp_path):
    said = sweep(tmp_path, *OPTIONS, "hydra/sweeper=basic", "seed=0,1", "algo.num_iterations=1")
    assert "1 is done: val/reward" in said
    for number in "01":
        assert read_result(tmp_path / "all" / number)["value"] > 0
        assert starts(tmp_path / "all" / number) == 1


def test_several_processes_of_a_job_run_each_job_once(tmp_path):
    ddp = ["trainer=ddp", "trainer.devices=2", "algo.num_iterations=2", "seed=0,1"]
    said = sweep(tmp_path, *OPTIONS, *ddp, "hydra.launcher.slots=1")
    assert "2 of 2 jobs are done" in said
    assert sorted(path.parent.name for path in tmp_path.rglob("result.json")) == [
        "seed=0",
        "seed=1",
    ]
    for folder in (tmp_path / "all" / "seed=0", tmp_path / "all" / "seed=1"):
        log = (folder / "job.log").read_text()
        assert starts(folder) == log.count("Where things are") == 1 and "Sweep of" not in log
        assert "2 processes" in log or "MEMBER: 2/2" in log
        history = json.loads((folder / "report.json").read_text())["history"]
        assert len(history) == 2


REWARD = """
import pathlib
def fn(prompts, responses, metadata=None):
    if {breaks} and pathlib.Path("broken").exists():
        raise RuntimeError("it is broken")
    return [float(len(r)) for r in responses]
"""


def test_a_failure_is_told_and_the_others_go_on_and_it_is_tried_again_when_asked(tmp_path):
    for name in ("good", "bad", "fine"):
        (tmp_path / f"{name}.py").write_text(REWARD.format(breaks=name == "bad"))
    (tmp_path / "broken").touch()
    options = [*OPTIONS, "reward=function", "reward.path=bad:fn,good:fn,fine:fn"]
    said = sweep(tmp_path, *options, status=1)
    folder = tmp_path / "all" / "path=bad-fn"
    failure = f"path=bad-fn failed: exit status 1: {read_failure(folder)['error'][15:]}"
    assert "it is broken" in failure and said.count(failure[:60]) == 1
    assert "2 of 3 jobs are done, 1 failed" in said and str(folder / "job.log") in said
    repeat = shlex.split(said.split("Try again what failed: ")[1].splitlines()[0])
    assert repeat[-2:] == ["hydra.sweep.dir=all", "sweep.retry_failed=true"]

    def times():
        return [starts(tmp_path / "all" / f"path={name}-fn") for name in ("bad", "good", "fine")]

    assert times() == [1, 1, 1]
    sweep(tmp_path, *options, status=1)
    assert times() == [1, 1, 1], "what failed is run again only when that is asked for"
    (tmp_path / "broken").unlink()
    said = sweep(tmp_path, *options, "sweep.retry_failed=true")
    assert "3 of 3 jobs are done" in said and times() == [2, 1, 1]


def begun(folder):
    def told():
        found = [read_progress(folder / "all" / name) for name in NAMES]
        return all(progress and progress.done >= 1 for progress in found)

    return told


def test_a_killed_sweep_goes_on_and_ends_as_if_it_had_not_been(undisturbed, tmp_path):
    process = begin(tmp_path, *TWO, "algo.max_new_tokens=8", "hydra.sweep.dir=all")
    until(begun(tmp_path), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    said = sweep(tmp_path, *TWO, "algo.max_new_tokens=8")
    assert "2 of 2 jobs are done" in said
    require_equal(tmp_path, undisturbed)


def test_ctrl_c_pauses_all_and_the_line_that_it_says_goes_on(undisturbed, tmp_path):
    process = begin(tmp_path, *TWO, "hydra.sweep.dir=all")
    until(begun(tmp_path), process)
    process.send_signal(signal.SIGINT)
    said = end(process, status=130)
    assert "Pausing: each job saves after its step" in said
    line = shlex.split(said.split("Go on with: ")[1].splitlines()[0])
    assert line[:2] == ["python", str(ROOT / "train.py")] and line[-1] == "hydra.sweep.dir=all"
    assert any(read_result(tmp_path / "all" / name) is None for name in NAMES), "too late"
    said = end(begin(tmp_path, *line[3:]))
    assert "2 of 2 jobs are done" in said
    require_equal(tmp_path, undisturbed)


def test_a_sweep_of_other_options_is_refused_and_nothing_is_touched(undisturbed):
    before = {p: p.stat().st_mtime_ns for p in (undisturbed / "all").rglob("*") if p.is_file()}
    said = sweep(undisturbed, *TWO, "seed=0,1", "algo.num_iterations=2", status=1)
    assert "seed: (none) -> 0,1" in said and "algo.num_iterations: 4 -> 2" in said
    said = sweep(undisturbed, *TWO, "algo.lerning_rate=1", status=1)
    assert "no `lerning_rate` in algo" in said
    assert before == {
        p: p.stat().st_mtime_ns for p in (undisturbed / "all").rglob("*") if p.is_file()
    }
