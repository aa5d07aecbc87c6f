"""The end of a run is evaluated once, however the run's length and its evaluations are counted."""

import lightning as L
import pytest
import torch
from helpers import PROMPTS, config, data
from lightning.pytorch.callbacks import Callback
from pair_helpers import data as pair_data
from pair_helpers import dataset

from rlmodules import DPO, PPO, DPOConfig
from rlmodules.callbacks import EvaluateAtEnd


class Evaluations(Callback):
    """Notes after how many optimizer steps the run was evaluated."""

    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


def trainer(log, **options):
    """As somebody builds one who knows Lightning alone."""
    return L.Trainer(
        accelerator="cpu",
        callbacks=[log],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **options,
    )


def online(**options):
    """PPO with 4 optimizer steps an epoch; (trainer, the steps it was evaluated after)."""
    c, log = config(), Evaluations()
    run = trainer(log, **options)
    run.fit(PPO(c), data(c, eval_prompts=PROMPTS[:2], eval_size=2))
    return run, log.steps


def offline(**options):
    """DPO with 2 optimizer steps of 2 batches an epoch."""
    c = DPOConfig(model_name="random:tiny", batch_size=2, gradient_accumulation_steps=2)
    log = Evaluations()
    run = trainer(log, accumulate_grad_batches=2, use_distributed_sampler=False, **options)
    run.fit(DPO(c), pair_data(c, held_out=dataset(3)))
    return run, log.steps


BY_STEP = {"check_val_every_n_epoch": None}


@pytest.mark.parametrize(
    ("fit", "options", "steps"),
    [
        (online, {"max_epochs": 3, "check_val_every_n_epoch": 2}, [8, 12]),
        (online, {"max_epochs": 2, "check_val_every_n_epoch": 2}, [8]),
        (online, {"max_epochs": 9, "max_steps": 6, "check_val_every_n_epoch": 9}, [6]),
        (online, {"max_epochs": 9, "max_steps": 4, "check_val_every_n_epoch": 1}, [4]),
        (online, {"max_epochs": 2, "val_check_interval": 6, **BY_STEP}, [6, 8]),
        (offline, {"max_epochs": 3, "val_check_interval": 8, **BY_STEP}, [4, 6]),
        (offline, {"max_epochs": 2, "val_check_interval": 8, **BY_STEP}, [4]),
        (offline, {"max_epochs": 9, "max_steps": 3, "val_check_interval": 4, **BY_STEP}, [2, 3]),
        (offline, {"max_epochs": 3, "check_val_every_n_epoch": 2}, [4, 6]),
    ],
)
def test_the_end_is_evaluated_once(fit, options, steps):
    run, evaluated_after = fit(**options)
    assert evaluated_after == steps == [*steps[:-1], run.global_step]
    assert run.check_val_every_n_epoch == options["check_val_every_n_epoch"]


def test_a_run_that_is_gone_on_with_ends_the_same(tmp_path):
    c, log = config(), Evaluations()
    d = data(c, eval_prompts=PROMPTS[:2], eval_size=2)
    module, run = PPO(c), trainer(log, max_epochs=1, check_val_every_n_epoch=5)
    run.fit(module, d)
    run.save_checkpoint(tmp_path / "one.ckpt")
    run.fit_loop.max_epochs = run.fit_loop.max_epochs + 1
    run.fit(module, d, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert log.steps == [4, 8] and run.check_val_every_n_epoch == 5


def test_it_is_attached_once_and_leaves_nothing_in_the_checkpoint(tmp_path):
    c, own = config(), EvaluateAtEnd()
    for callback, module in ((Evaluations(), PPO(c)), (own, PPO(c))):
        run = trainer(callback, max_epochs=1)
        d = data(c, eval_prompts=PROMPTS[:2], eval_size=2)
        run.validate(module, d, verbose=False)
        run.fit(module, d)
        attached = [c for c in run.callbacks if isinstance(c, EvaluateAtEnd)]
        assert len(attached) == 1 and (callback is not own or attached == [own])
        run.save_checkpoint(tmp_path / "last.ckpt")
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"] == {}
