"""A run that goes on with another number of processes: the same steps, and it is said."""

from types import SimpleNamespace

import pytest
import torch
from process_helpers import alone_and_together

from rlmodules.callbacks import RunRecord

SCRIPT = """
import contextlib, io, sys
import lightning as L
import torch
from pair_helpers import data, trainer
from rlmodules import DPO, DPOConfig

devices, folder = int(sys.argv[1]), sys.argv[2]
c = DPOConfig(model_name="random:tiny", batch_size=4, gradient_accumulation_steps=1, num_epochs=3,
              learning_rate=1e-3, eval_every=100, device="cpu", lr_scheduler_type="constant")
module, said = DPO(c), io.StringIO()
options = {"devices": devices, "limit_val_batches": 0, "default_root_dir": folder}
if devices == 1:
    first = trainer(c, folder, max_epochs=2, **options)
    first.fit(DPO(c), data(c), weights_only=True)
    first.save_checkpoint(f"{folder}/two.ckpt")
else:
    options["strategy"] = "ddp_find_unused_parameters_true"
run = trainer(c, folder, **options)
with contextlib.redirect_stdout(said):
    run.fit(module, data(c), ckpt_path=f"{folder}/two.ckpt", weights_only=True)
if run.is_global_zero:
    trained = [p.detach().flatten() for p in module.parameters() if p.requires_grad]
    torch.save({"weights": torch.cat(trained), "said": said.getvalue()}, f"{folder}/{devices}.pt")
"""


def test_another_number_of_processes_takes_the_same_steps_and_is_said(tmp_path):
    one, two, _ = alone_and_together(tmp_path, SCRIPT)
    assert "Changed" not in one["said"] and "\n  processes: 1 -> 2\n" in two["said"]
    start = torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"].values()
    start = torch.cat([weight.flatten() for weight in start])
    moved = (one["weights"] - start).abs().max()
    assert moved > 1e-4
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=float(moved) / 50)


def test_an_iteration_is_not_shared_by_another_number_of_processes():
    """Its episodes are in the checkpoint, each process's own."""
    record, trainer = RunRecord(), SimpleNamespace(num_devices=2, num_nodes=1, precision="32-true")
    states = {"combined_loader": [{"position": 1, "experiences": [{}]}]}
    checkpoint = {
        "run": {"processes": 1, "trainer.precision": "32-true"},
        "loops": {"fit_loop": {"state_dict": states}},
        "epoch": 4,
    }
    with pytest.raises(ValueError, match=r"in the middle of iteration 5(.|\n)*processes: 1 -> 2"):
        record.require_same(checkpoint, "last.ckpt", trainer)
    states["combined_loader"] = [{}]
    (change,) = record.require_same(checkpoint, "last.ckpt", trainer)
    assert str(change) == "processes: 1 -> 2"
