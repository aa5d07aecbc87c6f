"""Whole searches, as one types them, on the tiny model: ``make test-sweeps``."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlmodules.sweeping.jobs import read_progress, read_result

ROOT = Path(__file__).parents[2]
PLANTED = '''
def near_twelve(prompts, responses, metadata=None):
    """Best where responses are twelve long."""
    return [-abs(len(response) - 12) / 12 for response in responses]
'''
OPTIONS = [
    "algo=ppo",
    "experiment=smoke",
    "algo.device=cpu",
    "logger=none",
    "reward=function",
    "reward.path=planted:near_twelve",
    "algo.learning_rate=1e-4",
    "algo.value_learning_rate=1e-3",
    "algo.kl_penalty_coef=0.05",
    "algo.lam=0.95",
    "seed=0",
    "hydra.launcher.slots=2",
    "hydra.sweep.dir=all",
]
PATIENCE = 900


def begin(folder, *arguments):
    folder.mkdir(exist_ok=True)
    (folder / "planted.py").write_text(PLANTED)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
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


def done(folder):
    return sum(read_result(job) is not None for job in (folder / "all").glob("trial=*"))


def weights(folder):
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def starts(job):
    """The commands that were started in a job's folder."""
    log = (job / "job.log").read_text(errors="replace")
    return [line for line in log.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_twenty_trials_find_what_was_planted_though_the_search_was_stopped(tmp_path, how):
    told = ["-m", "hparams_search=optuna", *OPTIONS]
    told += ["algo.max_new_tokens=range(4,29)", "algo.num_iterations=1"]
    first = begin(tmp_path, *told)
    until = time.monotonic() + PATIENCE
    while done(tmp_path) < 6 and time.monotonic() < until and first.poll() is None:
        time.sleep(0.2)
    first.send_signal(how)
    said = end(first, -signal.SIGKILL if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert "hydra.sweep.dir=all" in said.splitlines()[-1]
    kept = {job.name for job in (tmp_path / "all").glob("trial=*") if read_result(job)}
    said = end(begin(tmp_path, *told))
    found = OmegaConf.load(tmp_path / "all" / "optimization_results.yaml")
    assert abs(found.best_params["algo.max_new_tokens"] - 12) <= 1
    assert "20 trials: " in said
    again = 0
    for job in (tmp_path / "all").glob("trial=*"):
        assert read_result(job) is not None
        assert job.name not in kept or len(starts(job)) == 1  # no trial runs twice
        again += len(starts(job)) > 1
    assert again <= 2  # those that were running go on


def test_halving_spends_half_and_its_winner_is_the_model_of_an_undisturbed_run(tmp_path):
    told = ["hparams_search=halving", *OPTIONS, "algo.num_iterations=8", "algo.eval_every=2"]
    swept = "algo.max_new_tokens=4,6,8,10,12,16,20,24"
    end(begin(tmp_path, "-m", *told, swept, "hydra/sweeper/sampler=grid"))
    jobs = sorted((tmp_path / "all").glob("trial=*"))
    spent = [read_progress(job).done for job in jobs]
    assert sorted(spent) == [2, 2, 2, 2, 4, 4, 8, 8] and sum(spent) <= 8 * 8 / 2
    found = OmegaConf.load(tmp_path / "all" / "optimization_results.yaml")
    best = found.best_params["algo.max_new_tokens"]
    (winner,) = [
        job for job in jobs if read_result(job) and re.search(rf"tokens={best} ", starts(job)[0])
    ]
    assert len(starts(winner)) == 3  # it was paused twice
    alone = [option for option in told if not option.startswith("hydra")]
    end(begin(tmp_path, *alone, f"algo.max_new_tokens={best}", "hydra.run.dir=alone"))
    assert weights(winner) == weights(tmp_path / "alone")
