"""RolloutDataModule in a Trainer: runs that hold nothing out."""

import helpers
import lightning as L
import pytest

from rlmodules import PPO

BY_STEP = {"check_val_every_n_epoch": None}


@pytest.mark.parametrize(
    "options", [{}, {"val_check_interval": 0.5}, {"val_check_interval": 3, **BY_STEP}]
)
def test_a_run_without_held_out_prompts_trains_and_evaluates_nothing(options):
    c = helpers.config()
    module, data = PPO(c), helpers.data(c)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = L.Trainer(accelerator="cpu", **quiet)
    assert run.validate(module, data, verbose=False) == []
    module, history = helpers.run(c, module, data=data, **options)
    assert len(history) == 2 and module.trainer.global_step == 8
    assert not any(name.startswith("val/") for row in history for name in row)
    assert module.trainer.limit_val_batches == 1.0
