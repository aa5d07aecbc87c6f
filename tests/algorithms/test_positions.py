"""Wherever in a run a checkpoint was written, the run goes on from it bit by bit."""

from functools import partial

import grpo_helpers
import helpers
import lightning as L
import pytest
import torch
from helpers import assert_same
from lightning.pytorch.callbacks import Checkpoint
from pair_helpers import data as pair_data
from pair_helpers import dataset

from rlmodules import DPO, GRPO, PPO, DPOConfig, RewardModel, RewardModelConfig
from rlmodules.callbacks import AtomicCheckpointIO, PreferenceReport, RunReport, SaveLast

PAIRS = {
    "model_name": "random:tiny",
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "device": "cpu",
}
ONLINE = {"batch_size": 8, "mini_batch_size": 2, "gradient_accumulation_steps": 2}
ONLINE |= {"learning_rate": 1e-2}
EPISODES = {"eval_prompts": helpers.PROMPTS[:2], "eval_size": 2}


def ppo():
    c = helpers.config(**ONLINE, value_warmup_iterations=1, num_iterations=3)
    return PPO(c), helpers.data(c, **EPISODES), 2


def grpo():
    c = grpo_helpers.config(**ONLINE, num_iterations=3)
    return GRPO(c), grpo_helpers.data(c, grpo_helpers.half_dull, **EPISODES), 2


def pairs(module_class, config_class, **settings):
    c = config_class(**PAIRS | settings)
    return module_class(c), pair_data(c, held_out=dataset(3)), None


# Each has 3 epochs of 2 to 4 optimizer steps of 2 batches.
RUNS = {
    "ppo": ppo,
    "grpo": grpo,
    "dpo": partial(pairs, DPO, DPOConfig),
    "reward": partial(pairs, RewardModel, RewardModelConfig, dropout_prob=0.3),
}


def fit(name, folder, *callbacks, epochs=3, ckpt_path=None, **options):
    """Train; returns what a checkpoint then holds, the report's state in it."""
    module, datamodule, every = RUNS[name]()
    report = (PreferenceReport if every is None else RunReport)(folder)
    report.on_train_end = lambda *_: None
    trainer = L.Trainer(
        **{
            "max_epochs": epochs,
            "accelerator": "cpu",
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 1.0,
            "check_val_every_n_epoch": every,
            "val_check_interval": 1.0 if every else 6,  # in batches: within epochs, and at ends
            "logger": False,
            "plugins": [AtomicCheckpointIO()],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "inference_mode": False,
            "callbacks": [report, *callbacks],
        }
        | options
    )
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    end = torch.load(folder / "end.ckpt", weights_only=True)
    end["stepped"] = trainer.fit_loop.epoch_loop._batches_that_stepped  # the loggers' x
    return end


def assert_same_end(straight, resumed, where=""):
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"):
        assert_same(straight[part], resumed[part], f"{where}: {part}")
    for part in ("epoch", "global_step", "stepped"):
        assert straight[part] == resumed[part], f"{where}: {part}"


HOOKS = (
    *("on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end"),
    *("on_before_zero_grad", "on_before_optimizer_step"),
    *("on_validation_start", "on_validation_batch_end", "on_validation_end"),
    *("on_train_epoch_end", "on_train_end"),
)


class SaveEverywhere(Checkpoint):
    """Writes a checkpoint in every hook of a run."""

    def __init__(self, folder):
        self.folder, self.paths = folder, []
        for hook in HOOKS:
            setattr(self, hook, partial(self.save, hook))

    def save(self, hook, trainer, *_):
        self.paths.append(self.folder / f"{len(self.paths):03d}-{hook}.ckpt")
        trainer.save_checkpoint(self.paths[-1])


EVERY_NTH = {"ppo": 5, "grpo": 7, "dpo": 2, "reward": 7}
"""Of the checkpoints of a run, those that are gone on from."""


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_from_wherever_it_was_saved(name, tmp_path):
    straight = fit(name, tmp_path / "straight")
    everywhere = SaveEverywhere(tmp_path / "saved")
    assert_same_end(straight, fit(name, tmp_path / "saving", everywhere), "saving changes nothing")
    assert {path.stem[4:] for path in everywhere.paths} == set(HOOKS)
    for path in everywhere.paths[:: EVERY_NTH[name]]:
        resumed = fit(name, tmp_path / "resumed", ckpt_path=path)
        assert_same_end(straight, resumed, path.stem)


def weights(end):
    """What is the same whether or not an earlier end was evaluated."""
    return {part: end[part] for part in ("state_dict", "optimizer_states", "global_step", "loops")}


def test_any_number_of_continuations_train_as_many_epochs_as_one_run(tmp_path):
    """20 rows, 5 steps an epoch, saved every 3: once the third ended at step 12 of 9."""
    straight = weights(fit("dpo", tmp_path / "straight", epochs=5))
    last = None
    for epochs in range(1, 6):
        save = SaveLast(tmp_path / str(epochs), every_n_train_steps=2)
        resumed = fit("dpo", tmp_path, save, epochs=epochs, ckpt_path=last)
        last = save.path
    assert_same(straight, weights(resumed))
    assert straight["global_step"] == 10


class StopAt(Checkpoint):
    """Asks Lightning to stop, as a timer or an early stopping does."""

    def __init__(self, hook, batch):
        self.batch, self.count = batch, 0
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.should_stop = True


def early(*place):
    return {"callback": StopAt(*place)}


LIMITS = {
    "steps": {"max_steps": 5},
    "steps, at an evaluation": {"max_steps": 3},
    "steps, at an epoch's end": {"max_steps": 4},
    "within a window": early("on_train_batch_end", 5),
    "between steps": early("on_train_batch_end", 6),
    "within the first window": early("on_train_batch_end", 1),
    "by an evaluation": early("on_validation_end", 6),
    "at an epoch's end": early("on_train_epoch_end", 8),
}


@pytest.mark.parametrize(
    ("name", "limit"),
    [("dpo", limit) for limit in LIMITS] + [("ppo", "steps"), ("ppo", "within a window")],
)
def test_a_run_that_a_limit_stopped_goes_on_exactly(name, limit, tmp_path):
    straight = fit(name, tmp_path / "straight")
    options = dict(LIMITS[limit])
    stop = [options.pop("callback")] if "callback" in options else []
    save = SaveLast(tmp_path / "stopped")
    stopped = fit(name, tmp_path / "stopped", *stop, save, **options)
    assert stopped["global_step"] < straight["global_step"]
    assert_same(weights(straight), weights(fit(name, tmp_path, ckpt_path=save.path)))


class Ends(Checkpoint):
    """Notes what was done after the last step."""

    def __init__(self):
        self.done = []

    def on_validation_end(self, trainer, pl_module):
        self.done.append(f"evaluated after {trainer.global_step}")

    def on_train_batch_end(self, *_):
        self.done.append("trained")

    def on_train_end(self, trainer, pl_module):
        self.done.append(f"ended in epoch {trainer.current_epoch}")


@pytest.mark.parametrize("options", [{}, {"max_steps": 5}, {"max_steps": 6}, {"max_steps": 3}])
def test_what_is_left_after_the_last_step_is_done_by_the_continuation(options, tmp_path):
    """From every checkpoint after it: its evaluation, if that is missing, and the end."""
    everywhere = SaveEverywhere(tmp_path / "saved")
    straight = fit("dpo", tmp_path / "straight", everywhere, **options)
    steps, epochs = straight["global_step"], straight["epoch"]
    ends = [p for p in everywhere.paths if torch.load(p)["global_step"] == steps]
    assert len(ends) >= 5
    seen = set()
    for path in ends:
        log = Ends()
        resumed = fit("dpo", tmp_path / "resumed", log, ckpt_path=path, **options)
        for part in ("state_dict", "optimizer_states", "callbacks", "epoch", "stepped"):
            assert_same(straight[part], resumed[part], f"{path.stem}: {part}")
        evaluation, ended = f"evaluated after {steps}", log.done[-1]
        assert log.done[:-1] in ([], [evaluation]) and ended.startswith("ended in epoch")
        seen.add(len(log.done))
    assert seen == {1, 2} and epochs <= 3


def test_a_checkpoint_of_another_number_of_processes_is_refused_within_an_iteration(tmp_path):
    everywhere = SaveEverywhere(tmp_path)
    fit("ppo", tmp_path, everywhere, epochs=1)
    path = next(path for path in everywhere.paths if path.stem.endswith("on_validation_start"))
    checkpoint = torch.load(path, weights_only=True)
    (loader,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    loader["experiences"] *= 2
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"within an iteration of 2 processes.*devices=2"):
        fit("ppo", tmp_path, ckpt_path=path)
