"""What a run that goes on may change: applied from there on and said, or refused."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import PROMPTS, SignalAt, assert_same, count_e
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import LRSchedulerConfig
from pair_helpers import CHOSEN, REJECTED, dataset
from pair_helpers import PROMPTS as PAIR_PROMPTS
from resume_helpers import fit, settings

from datamodules import PreferenceDataset
from rlmodules import PPOTrainer
from rlmodules.callbacks import RunRecord
from rlmodules.callbacks.run_record import restart_schedule
from rlmodules.callbacks.stopping import StoppedBySignal
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.optimizers.schedule import learning_rate_factor, make_schedule


class ChangeAt(Callback):
    """Changes a run that goes on undisturbed, at the start of an epoch."""

    def __init__(self, epoch, change):
        self.epoch, self.change = epoch, change

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            self.change(trainer, pl_module)


def in_groups(**values):
    def change(trainer, pl_module):
        for group in trainer.optimizers[0].param_groups:
            group.update(values)

    return change


def in_config(**values):
    def change(trainer, pl_module):
        for name, value in values.items():
            setattr(pl_module.config, name, value)

    return change


def value_head_rate(trainer, pl_module):
    trainer.optimizers[0].param_groups[1]["lr"] = 0.1


def scheduled(rate, schedule="linear"):
    """Another peak or schedule, at step 4 of 6 (DPO: of which one, reward: none, warms up)."""

    def change(trainer, pl_module):
        (entry,) = trainer.lr_scheduler_configs
        pl_module.config.lr_scheduler_type = schedule  # the schedule reads it there
        entry.scheduler.base_lrs = [rate]
        warmup = pl_module.warmup_steps(6)
        factor = learning_rate_factor(4, warmup, 6, schedule)
        trainer.optimizers[0].param_groups[0].update(lr=rate * factor, initial_lr=rate)
        entry.scheduler._last_lr = [rate * factor]

    return change


def coefficient(trainer, pl_module):
    pl_module.kl_controller.value = 0.5


def kl_target(trainer, pl_module):
    pl_module.kl_controller.target = 10.0


def clip_norm(trainer, pl_module):
    trainer.gradient_clip_val = 0.01


def dpo_beta(trainer, pl_module):
    pl_module.shape = replace(pl_module.shape, beta=0.5)


def planned(schedule):
    """A schedule over 12 steps of PPO from step 8 on, which a run without one goes on with."""

    def change(trainer, pl_module):
        pl_module.config.lr_scheduler_type = schedule
        made = make_schedule(trainer.optimizers[0], pl_module.config, 0, 12)
        trainer.strategy.lr_scheduler_configs = [LRSchedulerConfig(made, interval="step")]
        restart_schedule(made, trainer.global_step)

    return change


APPLIED = [
    ("ppo", {"learning_rate": 1e-3, "value_learning_rate": 1e-2}, [in_groups(lr=1e-2), None]),
    ("ppo", {"value_learning_rate": 0.1}, [value_head_rate]),
    ("ppo", {"weight_decay": 0.5}, [None]),
    ("ppo", {"kl_penalty_coef": 0.5}, [coefficient]),
    ("ppo", {"kl_target": 10.0}, [kl_target]),
    ("ppo", {"clip_ratio": 0.01}, [in_config(clip_ratio=0.01)]),
    ("ppo", {"value_clip": 0.01}, [in_config(value_clip=0.01)]),
    ("ppo", {"entropy_coef": 0.3}, [in_config(entropy_coef=0.3)]),
    ("ppo", {"max_grad_norm": 0.01}, [clip_norm]),
    ("ppo", {"lr_scheduler_type": "linear"}, [planned("linear")]),
    ("grpo", {"learning_rate": 1e-3}, [in_groups(lr=1e-3)]),
    ("grpo", {"beta": 0.5}, [in_config(beta=0.5)]),
    ("grpo", {"epsilon": 0.01}, [in_config(epsilon=0.01)]),
    ("dpo", {"learning_rate": 1e-3}, [scheduled(1e-3)]),
    ("dpo", {"lr_scheduler_type": "cosine"}, [scheduled(1e-2, "cosine")]),
    ("dpo", {"beta": 0.5}, [dpo_beta]),
    ("dpo", {"max_grad_norm": 0.01}, [clip_norm]),
    ("reward", {"learning_rate": 1e-3}, [scheduled(1e-3)]),
    ("reward", {"lr_scheduler_type": "constant"}, [scheduled(1e-2, "constant")]),
    ("reward", {"center_rewards_coefficient": 0.5}, [in_config(center_rewards_coefficient=0.5)]),
]


def first_group(**values):
    def change(trainer, pl_module):
        trainer.optimizers[0].param_groups[0].update(values)

    return change


SPECIAL = {
    0: [first_group(lr=1e-3)],  # the value head keeps its 1e-2, which is given now
    2: [first_group(weight_decay=0.5)],  # a value head has none
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of each algorithm with two of its three epochs done, and its settings."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with pytest.raises(StoppedBySignal):
                fit(name, folder, settings(name), 3, callbacks=[SignalAt(1, 3)])
            made[name] = folder / "checkpoints" / "last.ckpt"
        return made[name]

    return of


@pytest.mark.parametrize(
    "case", range(len(APPLIED)), ids=lambda i: f"{APPLIED[i][0]}-{'-'.join(APPLIED[i][1])}"
)
def test_what_is_changed_is_applied_from_there_on_and_said(case, tmp_path, stopped, capsys):
    name, changes, at = APPLIED[case]
    last = stopped(name)
    callbacks = [ChangeAt(2, change) for change in SPECIAL.get(case, at)]
    straight = fit(name, tmp_path / "straight", settings(name), 3, callbacks=callbacks)
    capsys.readouterr()
    resumed = fit(name, tmp_path / "resumed", settings(name, **changes), 3, ckpt_path=last)
    said = capsys.readouterr().out
    for option in changes:
        assert f"algo.{option}: " in said
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_same(straight[part], resumed[part], part)
    unchanged = fit(name, tmp_path / "unchanged", settings(name), 3, ckpt_path=last)
    assert "Changed" not in capsys.readouterr().out
    with pytest.raises(AssertionError):
        assert_same(unchanged["state_dict"], resumed["state_dict"])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_longer_run_follows_its_schedule_over_the_new_length(schedule, tmp_path, capsys):
    shorter = settings("dpo", num_epochs=2, lr_scheduler_type=schedule)
    fit("dpo", tmp_path / "first", shorter, 2)
    last, longer = tmp_path / "first" / "checkpoints" / "last.ckpt", replace(shorter, num_epochs=3)
    capsys.readouterr()
    resumed = fit("dpo", tmp_path / "second", longer, 3, ckpt_path=last)
    assert ("algo.num_epochs: 2 -> 3" in capsys.readouterr().out) == (schedule != "constant")
    rates = [r["train/learning_rate"] for r in resumed["callbacks"]["PreferenceReport"]["history"]]
    of = lambda step, total: 1e-2 * learning_rate_factor(step, 1, total, schedule)  # noqa: E731
    assert rates == pytest.approx([of(0, 4), of(1, 4), of(2, 4), of(3, 4), of(4, 6), of(5, 6)])


REFUSED = [
    ("ppo", "seed", 1, {}),
    ("ppo", "temperature", 1.3, {}),
    ("ppo", "gamma", 0.5, {}),
    ("ppo", "kl_estimator", "k3", {}),
    ("ppo", "max_new_tokens", 5, {}),
    ("ppo", "reward_clip", 0.1, {}),
    ("ppo", "batch_size", 4, {}),
    ("ppo", "mini_batch_size", 8, {}),
    ("ppo", "ppo_epochs", 1, {}),
    ("grpo", "loss_type", "dr_grpo", {}),
    ("grpo", "num_epochs", 1, {}),
    ("grpo", "beta", 0.0, {}),
    ("grpo", "num_generations", 2, {}),
    ("dpo", "loss_type", "hinge", {}),
    ("dpo", "label_smoothing", 0.1, {}),
    ("dpo", "seed", 1, {}),
    ("dpo", "max_length", 100, {"max_prompt_length": 50}),
    ("reward", "temperature", 2.0, {}),
    ("reward", "pooling_strategy", "mean", {}),
    ("reward", "batch_size", 4, {}),
]


@pytest.mark.parametrize(("name", "option", "value", "others"), REFUSED)
def test_what_would_make_a_result_of_neither_run_is_refused(
    name, option, value, others, tmp_path, stopped
):
    changed, old = settings(name, **{option: value} | others), settings(name)
    with pytest.raises(ValueError, match=rf"algo\.{option}") as refused:
        fit(name, tmp_path, changed, 3, ckpt_path=stopped(name))
    before = json.dumps(getattr(old, option)).strip('"')
    assert f"algo.{option}: {before} -> {value}" in str(refused.value)
    assert "resume.allow=[algo." in str(refused.value)


@pytest.mark.parametrize(("name", "option", "value"), [row[:3] for row in REFUSED[1:4]])
def test_what_is_allowed_goes_on_and_is_said(name, option, value, tmp_path, stopped, capsys):
    changed = settings(name, **{option: value})
    fit(name, tmp_path, changed, 3, ckpt_path=stopped(name), allow=[f"algo.{option}"])
    assert f"algo.{option}: " in capsys.readouterr().out


def test_sizes_do_not_change_in_the_middle_of_an_epoch_even_if_allowed(tmp_path):
    c = settings("ppo")
    with pytest.raises(StoppedBySignal):
        fit("ppo", tmp_path / "first", c, 3, callbacks=[SignalAt(1, 0)])
    last, other = (
        tmp_path / "first" / "checkpoints" / "last.ckpt",
        settings("ppo", mini_batch_size=8),
    )
    with pytest.raises(ValueError, match=r"middle of iteration 2(.|\n)*mini_batch_size: 4 -> 8"):
        fit("ppo", tmp_path / "second", other, 3, ckpt_path=last, allow=["algo.mini_batch_size"])
    fit("ppo", tmp_path / "third", settings("ppo", clip_ratio=0.1), 3, ckpt_path=last)


def test_a_typo_in_what_is_allowed_is_refused_with_the_name_it_resembles():
    with pytest.raises(ValueError, match=r"no option 'algo.temprature'.*mean 'algo.temperature'"):
        RunRecord(allow=["algo.temprature"])
    RunRecord(allow=["algo", "model.lora", "data.rows", "env.reward_weights", "seed"])
    assert RunRecord(allow="seed").allow == ["seed"] and RunRecord(allow=None).allow == []


def test_other_rows_are_noticed_whatever_they_are_called(tmp_path, stopped, capsys):
    last, c = stopped("dpo"), settings("dpo")
    tokenizer = tiny_tokenizer()
    other = PreferenceDataset(PAIR_PROMPTS, CHOSEN, [*REJECTED[:7], " Another one"], tokenizer)
    with pytest.raises(ValueError, match=r"data\.rows=8 has another content"):
        fit("dpo", tmp_path / "a", c, 3, ckpt_path=last, rows={"train": other})
    fit("dpo", tmp_path / "b", c, 3, ckpt_path=last, rows={"train": other}, allow=["data.rows"])
    again = PreferenceDataset(PAIR_PROMPTS, CHOSEN, REJECTED, tokenizer)
    capsys.readouterr()
    fit("dpo", tmp_path / "c", c, 3, ckpt_path=last, rows={"train": again})
    assert "Changed" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"data\.rows=4 has another content"):
        prompts = [*PROMPTS[:3], "And five"]
        fit("ppo", tmp_path / "d", settings("ppo"), 3, stopped("ppo"), rows={"prompts": prompts})


def test_other_held_out_rows_are_said_and_measured_afresh(tmp_path, capsys):
    c = settings("dpo")
    held_out = {"held_out": dataset(3)}
    with pytest.raises(StoppedBySignal):
        fit("dpo", tmp_path / "first", c, 3, callbacks=[SignalAt(1, 3)], rows=held_out)
    last, seen = tmp_path / "first" / "checkpoints" / "last.ckpt", []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            seen.append(next(c.before for c in trainer.callbacks if hasattr(c, "before")))

        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["callbacks"]["PreferenceReport"]["before"] = {"val/loss": 1.0}

    again = {"ckpt_path": last, "callbacks": [Watch()]}
    fit("dpo", tmp_path / "second", c, 3, rows=held_out, **again)
    assert seen[0] == {"val/loss": 1.0}
    seen.clear()
    capsys.readouterr()
    fit("dpo", tmp_path / "third", c, 3, rows={"held_out": dataset(4)}, **again)
    assert "data.rows.held_out" in capsys.readouterr().out
    assert seen[0] == {}


def test_another_precision_is_refused(tmp_path, stopped):
    with pytest.raises(ValueError, match=r"trainer\.precision: 32-true -> bf16-mixed"):
        fit("dpo", tmp_path, settings("dpo"), 3, stopped("dpo"), precision="bf16-mixed")


def test_a_checkpoint_of_before_there_were_records_is_held_against_its_own_settings(
    tmp_path, stopped, capsys
):
    old = torch.load(stopped("dpo"), weights_only=True)
    del old["run"]
    torch.save(old, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"algo\.loss_type: sigmoid -> hinge"):
        fit("dpo", tmp_path, settings("dpo", loss_type="hinge"), 3, tmp_path / "old.ckpt")
    fit("dpo", tmp_path, settings("dpo"), 3, tmp_path / "old.ckpt")
    assert "does not say what data, reward and environment it is of" in capsys.readouterr().out


def by_words(prompts, responses, metadata=None):
    return [float(len(response.split())) for response in responses]


def test_facades_hold_a_run_against_its_settings_too(tmp_path, capsys):
    def train(name, reward=count_e, prompts=PROMPTS, ckpt_path=None, **changes):
        c, options = settings("ppo", num_iterations=3, **changes), {"enable_progress_bar": False}
        trainer = PPOTrainer(c, reward_fn=reward, output_dir=tmp_path / name, **options)
        iterations = 3 if ckpt_path else 2
        return trainer.train(prompts, num_iterations=iterations, ckpt_path=ckpt_path)

    train("first")
    capsys.readouterr()
    assert len(train("faster", ckpt_path=tmp_path / "first", learning_rate=1e-3)["train/loss"]) == 3
    said = capsys.readouterr().out
    assert f"Resuming from {tmp_path}/first/checkpoints/last.ckpt (iteration 2" in said
    assert "algo.learning_rate: 0.01 -> 0.001" in said
    again = {"ckpt_path": tmp_path / "first"}
    with pytest.raises(ValueError, match=r"reward\._target_: count_e -> by_words"):
        train("second", reward=by_words, **again)
    with pytest.raises(ValueError, match=r"data\.rows=4 has another content"):
        train("third", prompts=PROMPTS[::-1], **again)
    with pytest.raises(ValueError, match=r"\n  algo\.batch_size: 8 -> 4\nGo on"):
        train("fourth", batch_size=4, **again)
    train("fifth", **again)
