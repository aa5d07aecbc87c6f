"""Every argument of Lightning's Trainer is handed on, contradicts an option, or is refused."""

import inspect
from contextlib import nullcontext
from dataclasses import asdict

import lightning as L
import pair_helpers
import pytest
import torch
from helpers import PROMPTS, config, count_e, data, run, weights
from lightning.pytorch.plugins import MixedPrecision

from rlmodules import DPO, PPO, DPOConfig, GRPOConfig, PPOConfig, PPOTrainer
from rlmodules.callbacks import OptimizedMetric
from rlmodules.optimizers.config import OPTIMIZERS, OptimizerConfig
from rlmodules.optimizers.schedule import planned_steps
from rlmodules.trainer_options import MANY_PROCESSES, check_trainer, several_processes

ONLINE = asdict(PPOConfig(num_iterations=7, eval_every=3))
OFFLINE = asdict(DPOConfig(num_epochs=2, eval_every=5, gradient_accumulation_steps=4))
BOTH = [
    ({"gradient_clip_algorithm": "value"}, "clipped by norm: algo.max_grad_norm"),
    ({"gradient_clip_val": 0.5}, "contradicts algo.max_grad_norm, which says 1.0"),
    ({"accumulate_grad_batches": 3}, "contradicts algo.gradient_accumulation_steps"),
    ({"default_root_dir": "/elsewhere"}, "contradicts paths.output_dir"),
    ({"max_epochs": -1}, "contradicts algo.num_"),
    ({"max_epochs": 3}, "contradicts algo.num_"),
    ({"min_epochs": 2}, "no callback stops the run early"),
    ({"min_steps": 2}, "no callback stops the run early"),
    ({"max_steps": -2}, "must be 0 or more"),
    ({"limit_val_batches": -1}, "must be 0 or more"),
    ({"fast_dev_run": True}, "use experiment=smoke"),
    ({"overfit_batches": 2}, "give a smaller data.path"),
    ({"reload_dataloaders_every_n_epochs": 1}, "keep their place by themselves"),
    ({"use_distributed_sampler": True}, "give each process its share themselves"),
    ({"sync_batchnorm": True}, "no batch normalisation"),
    ({"inference_mode": True}, "inference mode forbids"),
    ({"limit_test_batches": 2}, "nothing is tested"),
    ({"limit_predict_batches": 2}, "nothing is predicted"),
    ({"logger": False}, "loggers with logger=: default, wandb"),
    ({"callbacks": []}, "add +callbacks.NAME"),
    ({"plugins": []}, "a plugin of our own"),
    ({"model_registry": "x"}, "in the run's folder model/"),
    ({"strategy": "ddp"}, f"which takes {MANY_PROCESSES}"),
    ({"strategy": "fsdp"}, "is not known to work"),
    ({"precision": "16-mixed", "accelerator": "cpu"}, "needs a GPU: use bf16-mixed or 32-true"),
    ({"precision": 16, "accelerator": "cpu"}, "needs a GPU"),
]
ALONE = [
    (ONLINE, {"check_val_every_n_epoch": 1}, "contradicts algo.eval_every, which says 3"),
    (ONLINE, {"val_check_interval": 2}, "contradicts algo.eval_every"),
    (ONLINE, {"limit_train_batches": 0.5}, "the size of an iteration is algo.batch_size"),
    (ONLINE, {"log_every_n_steps": 10}, "metrics are of whole iterations"),
    (OFFLINE, {"val_check_interval": 5}, "contradicts algo.eval_every, which says 20"),
    (OFFLINE, {"check_val_every_n_epoch": 1}, "contradicts algo.eval_every"),
    (OFFLINE, {"max_time": "00:01:00:00"}, "set algo.lr_scheduler_type=constant, or"),
    (
        ONLINE | {"device": "cpu"},
        {"accelerator": "gpu"},
        "contradicts algo.device, which says 'cpu'",
    ),
    (OFFLINE | {"device": "cuda:1"}, {"devices": 2}, r"contradicts algo.device, which says \[1\]"),
]


@pytest.mark.parametrize(
    ("algo", "options", "sentence"),
    [(algo, *row) for algo in (ONLINE, OFFLINE) for row in BOTH] + ALONE,
)
def test_what_contradicts_an_option_or_is_read_by_nothing_is_refused(algo, options, sentence):
    with pytest.raises(ValueError, match=r"trainer\.\w+=.*" + sentence.replace("+", r"\+")):
        check_trainer(options, algo, "/run")


@pytest.mark.parametrize("algo", [ONLINE, OFFLINE], ids=["online", "offline"])
def test_what_lightning_reads_is_handed_on(algo):
    check_trainer({}, algo, "/run")
    length = algo.get("num_iterations", algo.get("num_epochs"))
    same = {"max_epochs": length, "gradient_clip_val": 1.0, "default_root_dir": "/run"}
    lightnings = {"max_steps": 3, "limit_val_batches": 2, "num_sanity_val_steps": 2}
    flags = {"deterministic": True, "benchmark": True, "detect_anomaly": True, "devices": 2}
    check_trainer(same | lightnings | flags, algo, "/run")
    check_trainer({"max_epochs": -1, "max_steps": 5}, algo, "/run")
    check_trainer({"min_steps": 5}, algo, "/run", ["mine.EarlyStopping"])
    for device in ("cpu", "cuda"):  # a kind says nothing of how many
        check_trainer({"devices": 2}, algo | {"device": device}, "/run")
    constant = algo | {"lr_scheduler_type": "constant"}
    check_trainer({"max_time": "00:01:00:00"}, constant, "/run")


def test_every_argument_of_the_trainer_is_in_one_of_the_tables():
    """A later Lightning's new argument wants a decision."""
    refused = {name for row in BOTH for name in row[0]} | {n for row in ALONE for n in row[1]}
    walked = {
        "barebones", "benchmark", "detect_anomaly", "deterministic", "devices", "num_nodes",
        "enable_autolog_hparams", "enable_checkpointing", "enable_model_summary",
        "enable_progress_bar", "num_sanity_val_steps", "profiler",
    }  # fmt: skip
    assert set(inspect.signature(L.Trainer).parameters) == refused | walked


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({"devices": 2, "accelerator": "cpu"}, MANY_PROCESSES),
        ({"devices": "2", "accelerator": "cpu"}, MANY_PROCESSES),
        ({"devices": [0, 1], "accelerator": "gpu"}, MANY_PROCESSES),
        ({"devices": "0,1", "accelerator": "gpu"}, MANY_PROCESSES),
        ({"devices": 1, "num_nodes": 2}, MANY_PROCESSES),
        ({"devices": 1}, None),
        ({"devices": [3], "accelerator": "gpu"}, None),
        ({"devices": "auto", "accelerator": "cpu"}, None),
        ({"devices": 2, "strategy": "mine"}, None),
    ],
)
def test_several_processes_take_the_strategy_that_works(options, strategy):
    assert several_processes(options) == ({} if strategy is None else {"strategy": strategy})


def test_all_gpus_of_a_machine_are_several_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert several_processes({"devices": "auto", "accelerator": "auto"})
    assert several_processes({"devices": -1, "accelerator": "gpu"})


def test_a_facade_refuses_the_same(tmp_path):
    for options, sentence in (
        ({"accumulate_grad_batches": 2}, "algo.gradient_accumulation_steps"),
        ({"max_epochs": 9}, "algo.num_iterations"),
        ({"fast_dev_run": True}, "fast_dev_run"),
    ):
        trainer = PPOTrainer(config(), reward_fn=count_e, output_dir=tmp_path, **options)
        with pytest.raises(ValueError, match=sentence):
            trainer.train(PROMPTS)


def test_a_trainer_of_ones_own_may_not_contradict_the_algorithm():
    c = config(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=1, and algo\.gradient_accum"):
        run(c, accumulate_grad_batches=1)
    with pytest.raises(ValueError, match="gradient_clip_algorithm='value'"):
        run(config(), gradient_clip_algorithm="value")
    limited = weights(run(config(max_grad_norm=1e-3))[0])
    assert torch.equal(limited, weights(run(config(max_grad_norm=1e-3), gradient_clip_val=None)[0]))


# ---------------------------------------------------------------- the schedule


def rates(epochs=1, **options):
    """The learning rate of every step, as shares of the peak; 8 batches are an epoch."""
    c = DPOConfig(
        "random:tiny", batch_size=1, num_epochs=epochs, warmup_ratio=0.0, learning_rate=1e-6
    )
    history, _ = pair_helpers.fit(DPO(c), **options)
    return [row["train/learning_rate"] / 1e-6 for row in history]


def falling(steps):
    return [1 - i / steps for i in range(steps)]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 4),
        ({"epochs": 2}, 8),
        ({"max_steps": 3}, 3),
        ({"max_steps": 99}, 4),
        ({"max_epochs": -1, "max_steps": 6}, 6),
        ({"limit_train_batches": 4}, 2),
        ({"limit_train_batches": 0.5, "epochs": 3}, 6),
        ({"limit_train_batches": 4, "epochs": 2, "max_steps": 3}, 3),
    ],
)
def test_a_linear_schedule_falls_over_the_steps_that_are_taken(options, steps):
    assert rates(**options) == pytest.approx(falling(steps))


def test_a_limit_that_cuts_a_step_in_two_is_refused():
    for limit in (3, 1, 0.4, 0):
        with pytest.raises(ValueError, match=f"limit_train_batches={limit} keeps"):
            rates(limit_train_batches=limit)


def test_a_run_without_a_known_end_has_a_constant_schedule_alone():
    trainer = L.Trainer(max_epochs=-1, max_time="00:00:10:00", accelerator="cpu", logger=False)
    assert planned_steps(trainer, 8) == 1


# -------------------------------------------------------------- half precision


class Scaled(MixedPrecision):
    """The gradients of ``16-mixed``, multiplied by a scale, without its rounding."""

    def __init__(self, scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self):
        return nullcontext()


@pytest.mark.filterwarnings("ignore:algo.optimizer.name=adamw_offload saves nothing")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradients_are_clipped_by_their_own_norm_not_by_the_scaled_ones(optimizer):
    c = config(max_grad_norm=1e-3, learning_rate=1e-3, optimizer=OptimizerConfig(optimizer))
    plain, rows = run(c)
    scaled, scaled_rows = run(c, plugins=[Scaled(2.0**16)])
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=0, atol=1e-6)
    for row, other in zip(rows, scaled_rows, strict=True):
        assert other["train/grad_norm"] == pytest.approx(row["train/grad_norm"], rel=1e-4)


def test_a_kl_early_stop_leaves_steps_out_under_a_loss_scale_too():
    c = config(early_stop_kl=1e-9, learning_rate=1e-2, num_iterations=2)
    plain, rows = run(c)
    assert all(row["train/stopped_early"] == 1.0 for row in rows)
    scaled, _ = run(c, plugins=[Scaled(2.0**10)])
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=0, atol=1e-6)


def test_a_step_that_overflows_is_left_out_and_the_scale_falls():
    precision, c = Scaled(2.0**127), config(num_iterations=1, ppo_epochs=1)
    module = PPO(c)
    before, step = weights(module), module.training_step
    module.training_step = lambda batch, batch_idx: 1e6 * step(batch, batch_idx)
    _, rows = run(c, module, plugins=[precision])
    assert precision.scaler.get_scale() < 2.0**127
    assert torch.equal(weights(module), before) and "train/grad_norm" not in rows[0]


# -------------------------------------------------------- the optimized metric


def test_a_metric_that_no_run_logs_is_refused_before_training(command):
    quick = [
        "model=tiny", "reward=length", "trainer.precision=32-true", "algo.num_iterations=1",
        "algo.batch_size=4", "algo.mini_batch_size=2", "algo.max_new_tokens=4", "logger=none",
    ]  # fmt: skip
    for metric, sentence in (
        ("val/rewrd", "did you mean val/reward?"),
        ("reward", "must begin with one of ('val/', 'train/', 'rollout/', 'time/')"),
    ):
        said = command(*quick, "data.eval_size=4", f"optimized_metric={metric}", status=1)
        assert f"optimized_metric='{metric}'" in said and sentence in said
        assert "iteration 1/1" not in said
    said = command(*quick, "data.eval_size=4", "optimized_metric=rollout/reword", status=1)
    assert "did you mean rollout/reward?" in said
    said = command(*quick, "data.eval_size=0", "optimized_metric=val/reward", status=1)
    assert "was never logged: nothing is held out" in said
    command(*quick, "data.eval_size=4", "optimized_metric=rollout/explained_variance")
    command(*quick, "data.eval_size=0")  # nobody asked for it


def test_a_metric_that_exists_after_the_critics_warm_up_alone_is_waited_for(tmp_path):
    c = config(value_warmup_iterations=1, num_iterations=2)
    run(c, callbacks=[OptimizedMetric("train/policy_loss")], data=data(c))
    with pytest.raises(ValueError, match=r"train/policy_lose.*did you mean train/policy_loss"):
        run(c, callbacks=[OptimizedMetric("train/policy_lose")], data=data(c))


def test_grpo_is_online_and_has_a_length_of_its_own():
    algo = asdict(GRPOConfig(num_iterations=4))
    with pytest.raises(ValueError, match=r"contradicts algo\.num_iterations, which says 4"):
        check_trainer({"max_epochs": 5}, algo, "/run")
