"""Two processes are rolled back together: by each strategy, for each way of failing, and where the
first starts the other, as on one machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rollback_helpers import BACK, FAST, QUICK, REWARDS, assert_rolled_back_together, checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("symptom", "at"), [("lost_loss", 3), ("high_kl", 4)])
def test_two_processes_go_back_together_and_on_exactly(strategy, symptom, at, tmp_path):
    assert_rolled_back_together(tmp_path, strategy, symptom, at)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_that_the_first_started_goes_back_with_it(strategy, tmp_path):
    (tmp_path / "varied_rewards.py").write_text(REWARDS)
    told = [*QUICK, *FAST, *BACK, f"trainer={strategy}", "trainer.devices=2"]
    told += ["hydra.run.dir=run", "algo.num_iterations=5"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *told],
        cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Rolled back to iteration 1;") == 1
    saved = checkpoint(tmp_path / "run")
    assert [r["to"] for r in saved["rollbacks"]] == [1]
    assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 5
