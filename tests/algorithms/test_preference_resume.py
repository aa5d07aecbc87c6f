"""A preference run that was stopped goes on bit by bit, also in the middle of an epoch."""

import os
import signal

import kto_helpers
import pair_helpers
import pytest
import sft_helpers
import torch
from adapter_helpers import adapter_folder
from helpers import assert_same
from lightning.pytorch.callbacks import Callback
from pair_helpers import fit

from rlmodules import (
    DPO,
    KTO,
    SFT,
    DPOConfig,
    KTOConfig,
    LoraConfig,
    ModelConfig,
    RewardModel,
    RewardModelConfig,
    SFTConfig,
)
from rlmodules.callbacks import newest_checkpoint
from rlmodules.callbacks.stopping import StoppedBySignal

SHARED = {
    "model_name": "random:tiny",
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_epochs": 3,  # of 2 optimizer steps
    "learning_rate": 1e-2,
    "eval_every": 2,
    "device": "cpu",
}
LORA = ModelConfig(name="random:tiny", lora=LoraConfig(r=4))
RUNS = {
    "dpo": lambda: DPO(DPOConfig(**SHARED)),
    "dpo-lora": lambda: DPO(DPOConfig(**SHARED), LORA),
    "dpo-adapter": lambda: DPO(DPOConfig(**SHARED | {"model_name": "adapter"})),
    "sft": lambda: SFT(SFTConfig(**SHARED, eval_samples=1, max_new_tokens=2)),
    "sft-lora": lambda: SFT(SFTConfig(**SHARED, loss_type="dft"), LORA),
    "kto": lambda: KTO(KTOConfig(**SHARED)),
    "reward": lambda: RewardModel(RewardModelConfig(**SHARED, dropout_prob=0.3)),
}


class StopAt(Callback):
    """Sends this process SIGTERM at the n-th batch of all."""

    def __init__(self, batch):
        self.batch, self.seen = batch, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.seen == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)
        self.seen += 1


def run(name, folder, **options):
    module = RUNS[name]()
    kinds = {SFT: sft_helpers, KTO: kto_helpers}
    helpers = kinds.get(type(module), pair_helpers)
    datamodule = helpers.data(module.config, held_out=helpers.dataset(3))
    fit(module, datamodule, folder, save=True, **options)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("batch", [0, 1, 3, 5, 9])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(name, batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter_folder("adapter")
    straight = run(name, tmp_path / "straight")
    with pytest.raises(StoppedBySignal):
        run(name, tmp_path / "stopped", callbacks=[StopAt(batch)])
    last = newest_checkpoint(tmp_path / "stopped")
    resumed = run(name, tmp_path / "resumed", ckpt_path=last)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(straight[part], resumed[part], part)
    report = "PreferenceReport"
    for part in ("history", "evaluations"):
        rows = [c["callbacks"][report][part] for c in (straight, resumed)]
        assert len(rows[0]) >= 3
        assert_same(*rows, part)


def test_a_checkpoint_holds_no_reference_and_loads_alone(tmp_path):
    checkpoint = run("dpo", tmp_path)
    assert not any("reference" in key for key in checkpoint["state_dict"])
    module = DPO.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    trained = dict(module.base_model.named_parameters())
    for name, weight in checkpoint["state_dict"].items():
        assert torch.equal(trained[name.removeprefix("base_model.")], weight)
