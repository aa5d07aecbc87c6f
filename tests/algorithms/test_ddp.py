"""Two processes do together what one does alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
import lightning as L
import torch
from helpers import PROMPTS, config, data, weights
from rlmodules import PPO
from rlmodules.callbacks import RunReport, SaveOnStop

devices, warmup, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
c = config(batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2, ppo_epochs=1,
           num_iterations=2, max_grad_norm=1e9, value_warmup_iterations=warmup, target_kl=1e9)
module = PPO(c)
module.policy.value_head.output.weight.data.fill_(0.01)
module.configure_optimizers = lambda: torch.optim.SGD(
    [p for p in module.parameters() if p.requires_grad], lr=0.1)
report = RunReport(folder)
report.on_train_end = lambda *_: None
trainer = L.Trainer(
    max_epochs=2, accelerator="cpu", devices=devices, accumulate_grad_batches=2,
    strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
    gradient_clip_val=c.max_grad_norm, logger=False, callbacks=[report],
    enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    use_distributed_sampler=False,
)
trainer.fit(module, data(c, eval_prompts=PROMPTS[:3], eval_size=3))
if trainer.is_global_zero:
    torch.save({"weights": weights(module), "history": report.history}, f"{folder}/{devices}.pt")
"""


@pytest.mark.parametrize("warmup", [0, 1], ids=["ppo", "critic warm-up"])
def test_two_processes_take_the_steps_of_one(tmp_path, warmup):
    """Two optimizer steps over 8 episodes each: the same texts, weights and metrics."""
    here = Path(__file__).parents[1]
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
        "OMP_NUM_THREADS": "1",
    }
    for devices in (1, 2):
        command = [sys.executable, "script.py", str(devices), str(warmup), str(tmp_path)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=2e-6)
    for alone, together in zip(one["history"], two["history"], strict=True):
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            # Minibatches differ in make-up, so only what is a mean over all actions must agree.
            if name.startswith(("rollout/", "val/")) and value == value:
                assert together[name] == pytest.approx(value, abs=2e-5), name
