"""``task=compare``: what runs left is compared, without a model, a run or a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_helpers import make_run

ROOT = Path(__file__).parents[2]
LR = "algo.learning_rate"


@pytest.fixture
def sweep(tmp_path):
    for rate, value in ((1e-5, 0.2), (3e-5, 0.4)):
        for seed in (0, 1):
            make_run(
                tmp_path / "sweep" / f"lr={rate},seed={seed}", value + seed / 10, seed,
                overrides=[f"{LR}={rate}"], settings={LR: rate}, after={"val/kl": -value},
            )  # fmt: skip
    return tmp_path / "sweep"


def test_runs_are_compared_and_nothing_is_left_behind(sweep, tmp_path, command):
    for runs in ("sweep", "[sweep]", '["sweep/lr=1e-05*","sweep/lr=3e-05*"]'):
        said = command("task=compare", f"runs={runs}")
        assert "val/reward (higher is better)" in said and "lr=3e-5 0.450" in said
    assert "python train.py algo=ppo algo.learning_rate=3e-05 seed=0" in said
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


def test_it_is_by_the_metric_that_is_named_and_written_where_one_says(sweep, tmp_path, command):
    said = command("task=compare", "runs=sweep", "optimized_metric=val/kl", "out=here",
                   "task.price_per_hour=36", "task.direction=maximize")  # fmt: skip
    assert "val/kl (higher is better)" in said and "price" in said
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "sweep.csv", "sweep.html", "sweep.json",
    ]  # fmt: skip
    found = json.loads((tmp_path / "here" / "sweep.json").read_text())
    assert (found["metric"], found["best"]) == ("val/kl", "lr=1e-5")
    assert found["settings"][0]["cost"]["price"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([], "leaves open: runs=..."),
        (["runs=nowhere"], "no run is found at nowhere: there is no such folder"),
        (["runs=sweep", "optimized_metric=val/rewrad"], "did you mean val/reward?"),
        (["runs=sweep", "algo.learning_rate=1"], "no use for algo.learning_rate=1: leave it out"),
        (["runs=sweep", "model=tiny"], "no use for model=tiny: leave it out"),
        (["runs=sweep", "task.direction=up"], "direction='up': choose maximize or minimize"),
        (["runs=sweep", "task.price_per_hour=0"], "price_per_hour=0.0 must be a finite number"),
        (["runs=sweep", "task.outs=x"], "no `outs` in task: did you mean out?"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_sentence(sweep, tmp_path, command, told, said):
    assert said in command("task=compare", *told, status=1)
    assert not list(tmp_path.rglob("error.txt"))


def test_it_answers_without_loading_what_trains(sweep, tmp_path):
    """A process of its own, as this one has loaded everything."""
    heavy = "torch transformers lightning peft datasets matplotlib pandas scipy.stats"
    program = (
        "import sys, train; sys.argv = ['train.py', 'task=compare', 'runs=sweep', 'out=out'];"
        f"train.main(); print('LOADED', [m for m in '{heavy}'.split() if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "LOADED []" in done.stdout, done.stdout + done.stderr
