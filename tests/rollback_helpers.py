"""Runs whose KL runs away, and what their checkpoints hold."""

import math
from pathlib import Path

from helpers import assert_same
from process_helpers import forked

from rlmodules.callbacks import AtomicCheckpointIO
from rlmodules.resuming.shares import named_by

REWARDS = """
def varied(prompts, responses, metadata=None):
    return [sum(map(ord, response)) % 97 / 97 for response in responses]
"""
QUICK = ["experiment=smoke", "trainer.precision=32-true", "algo.device=cpu", "data.eval_size=2"]
QUICK += [f"~callbacks.{name}" for name in ("export", "samples", "tokens", "progress")]
QUICK += ["reward=function", "reward.path=varied_rewards:varied", "logger=csv"]
QUICK += ["algo.eval_every=1", "algo.ppo_epochs=2", "algo.value_warmup_iterations=0"]
FAST = ["algo.kl_target=0.2", "algo.kl_penalty_coef=0.0", "algo.learning_rate=0.02"]
BACK = ["callbacks.health.on_failure=rollback", "callbacks.health.lr_factor=0.0078125"]
BACK += ["algo.save_every=1"]
"""Runs whose KL runs away within a few iterations; at a 128th of the learning rate it does not."""

SCRIPT = """
import sys
import pytest
import train
from rlmodules import PPO
from rollback_helpers import BACK, FAST, QUICK, make_ill

strategy, symptom = sys.argv[1:3]
patch = pytest.MonkeyPatch()
patch.setattr("rlmodules.callbacks.health.KEPT", 9)
if symptom == "lost_loss":
    make_ill(PPO, 2, patch)

def run(folder, *told):
    sys.argv = ["train.py", *QUICK, f"hydra.run.dir={folder}", "~callbacks.report", *told]
    sys.argv += [f"trainer={strategy}", "trainer.devices=2", "algo.num_iterations=4"]
    train.main()

run("run", *FAST, *BACK, f"callbacks.health.symptoms=[{symptom}]")
factor = 0.0078125
slow = [f"algo.learning_rate={0.02 * factor}", f"algo.value_learning_rate={1e-3 * factor}"]
run("hand", *FAST[:-1], *slow, "ckpt_path=run/checkpoints/rollback-1.last.ckpt")
"""
"""A run that is rolled back, and the same gone on with by hand; told a strategy and a symptom."""


def checkpoint(folder, name="last"):
    return AtomicCheckpointIO().load_checkpoint(Path(folder, "checkpoints", f"{name}.ckpt"))


def history(saved):
    return saved["callbacks"]["HealthGuard"]["rows"]


def assert_same_training(left, right):
    for part in ("state_dict", "global_step", "loops"):
        assert_same(left[part], right[part], part)
    for a, b in zip(left["optimizer_states"], right["optimizer_states"], strict=True):
        assert_same(a["state"], b["state"], "optimizer")
        assert [g["lr"] for g in a["param_groups"]] == [g["lr"] for g in b["param_groups"]]
    assert_same(history(left), history(right), "history")


def make_ill(kind, epoch, monkeypatch):
    """Have the losses of ``kind`` be no numbers in an epoch, at the learning rate of ``FAST``."""
    healthy = kind.training_step

    def step(self, *batch):
        fast = self.optimizers().param_groups[0]["lr"] > 1e-3
        return healthy(self, *batch) * (math.nan if fast and self.current_epoch == epoch else 1.0)

    monkeypatch.setattr(kind, "training_step", step)


def assert_rolled_back_together(folder, strategy, symptom, at):
    """Two processes go back from after iteration ``at`` to 1, and on from there as if by hand."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "varied_rewards.py").write_text(REWARDS)
    said = forked([str(folder / "script.py"), strategy, symptom], folder, processes=2)
    assert said.count("Rolled back to iteration 1;") == 1, said[-3000:]
    saved = checkpoint(folder / "run")
    (rollback,) = saved["rollbacks"]
    assert [rollback[k] for k in ("symptom", "at", "to")] == [symptom, at, 1]
    assert_same_training(saved, checkpoint(folder / "hand"))
    checkpoints = folder / "run" / "checkpoints"
    beside = {path.name for path in checkpoints.iterdir() if path.is_dir()}
    assert beside == {named_by(path) for path in checkpoints.glob("*.ckpt")} - {None}
    assert bool(beside) == (strategy == "fsdp")
