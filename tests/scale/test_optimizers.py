"""Two processes train alike with each optimizer, and as one does."""

import pytest
from process_helpers import alone_and_together

SCRIPT = """
import sys
import torch
from datamodules.processes import gather
from pair_helpers import data, fit
from rlmodules import DPO, DPOConfig, ModelConfig, OptimizerConfig

devices, folder, results = int(sys.argv[1]), sys.argv[2], {}
for optimizer, dtype in (("adamw", "bfloat16"), ("adamw8bit", "float32"), ("muon", "float32")):
    c = DPOConfig("random:tiny", batch_size=4, num_epochs=2, learning_rate=1e-4,
                  lr_scheduler_type="constant", optimizer=OptimizerConfig(optimizer))
    module = DPO(c, ModelConfig(name="random:tiny", dtype=dtype))
    strategy = "ddp_find_unused_parameters_true" if devices > 1 else "auto"
    history, _ = fit(module, data(c), folder, devices=devices, strategy=strategy)
    weights = torch.cat([p.detach().flatten() for p in module.base_model.parameters()])
    everywhere = gather(weights.float().sum().item())
    results[f"{optimizer}-{dtype}"] = {
        "weights": weights, "loss": [row["train/loss"] for row in history], "sums": everywhere}
if module.global_rank == 0:
    torch.save(results, f"{folder}/{devices}.pt")
"""


def test_two_processes_hold_the_same_weights_and_learn_as_one(tmp_path):
    one, two, _ = alone_and_together(tmp_path, SCRIPT)
    assert len(one) == 3
    for case, alone in one.items():
        together = two[case]
        first, second = together["sums"]
        assert first == second, case
        assert together["loss"] == pytest.approx(alone["loss"], abs=2e-3), case
        apart = (together["weights"].float() - alone["weights"].float()).abs()
        assert apart.mean() < 0.1e-4, case  # a tenth of one step
