"""A run that stops and goes on is, bit by bit, the run that never stopped."""

import os
import signal

import lightning as L
import pytest
import torch
from adapter_helpers import adapter_folder
from helpers import PROMPTS, SignalAt, assert_same_run, config, count_e, data

from datamodules import RewardError
from rlmodules import PPO, LoraConfig, ModelConfig
from rlmodules.callbacks import AtomicCheckpointIO, RunReport, SaveLast, newest_checkpoint
from rlmodules.callbacks.stopping import StoppedBySignal

TIMES = ("time/rollout_s", "time/evaluate_s", "time/update_s")


def trained_weights(checkpoint):
    return checkpoint["state_dict"]


def fit(
    folder,
    iterations,
    *,
    name="random:tiny",
    lora=0,
    ckpt_path=None,
    reward=count_e,
    callbacks=(),
    **changes,
):
    """Train with everything that keeps state switched on; returns the final checkpoint."""
    c = config(
        model_name=name,
        num_iterations=iterations,
        learning_rate=1e-2,
        batch_size=8,
        gradient_accumulation_steps=1,
        value_warmup_iterations=1,
        **changes,
    )
    module = PPO(c, ModelConfig(name=name, lora=LoraConfig(r=lora)))
    report = RunReport(folder)
    trainer = L.Trainer(
        max_epochs=iterations,
        accelerator="cpu",
        gradient_clip_val=c.max_grad_norm,
        accumulate_grad_batches=c.gradient_accumulation_steps,
        check_val_every_n_epoch=2,
        logger=False,
        callbacks=[*callbacks, report, SaveLast(folder / "checkpoints")],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    d = data(c, reward, eval_prompts=PROMPTS[:2], eval_size=2)
    try:
        trainer.fit(module, d, ckpt_path=ckpt_path, weights_only=True)
    finally:
        (folder / "history").mkdir(parents=True, exist_ok=True)
        torch.save(report.history, folder / "history" / "h.pt")
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("start", ["full", "lora", "adapter"])
def test_n_plus_m_iterations_equal_n_then_a_resumed_m(tmp_path, start):
    """(Of an adapter the reference is the folder's, not the checkpoint's.)"""
    name = adapter_folder(tmp_path / "a") if start == "adapter" else "random:tiny"
    options = {"name": name, "lora": 4 if start == "lora" else 0}
    straight = fit(tmp_path / "straight", 5, **options)
    fit(tmp_path / "first", 2, **options)
    last = newest_checkpoint(tmp_path / "first")
    resumed = fit(tmp_path / "second", 5, **options, ckpt_path=last)
    assert_same_run(straight, resumed)
    assert straight["state_dict"]["kl_controller._extra_state"] != config().kl_penalty_coef
    assert len(straight["callbacks"]["RunReport"]["history"]) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("batch", [0, 1, 3], ids=["first batch", "middle", "last batch"])
def test_a_signal_in_the_middle_of_an_iteration_loses_nothing(tmp_path, number, batch):
    straight = fit(tmp_path / "straight", 4)
    with pytest.raises(StoppedBySignal) as stopped:
        fit(tmp_path / "first", 4, callbacks=[SignalAt(2, batch, number)])
    assert stopped.value.code == 128 + number
    last = newest_checkpoint(tmp_path / "first")
    resumed = fit(tmp_path / "second", 4, ckpt_path=last)
    assert_same_run(straight, resumed)


def test_a_signal_within_an_accumulation_window_waits_for_its_step(tmp_path):
    changes = {"mini_batch_size": 2, "gradient_accumulation_steps": 2}

    def fit_accumulating(folder, **kwargs):
        c = config(num_iterations=3, batch_size=8, **changes)
        module, report = PPO(c), RunReport(folder)
        callbacks = [*kwargs.pop("callbacks", ()), report, SaveLast(folder / "checkpoints")]
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            accumulate_grad_batches=2,
            logger=False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data(c), weights_only=True, **kwargs)
        return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)

    straight = fit_accumulating(tmp_path / "straight")
    with pytest.raises(StoppedBySignal):
        fit_accumulating(tmp_path / "first", callbacks=[SignalAt(1, 2)])
    resumed = fit_accumulating(tmp_path / "second", ckpt_path=newest_checkpoint(tmp_path / "first"))
    assert_same_run(straight, resumed)


def test_a_failing_reward_leaves_a_checkpoint_that_resumes(tmp_path):
    calls = []

    def fails_once(prompts, responses, metadata=None):
        calls.append(len(prompts))
        if len(calls) >= 5 and not healed:
            raise ConnectionError("the scorer is away")
        return count_e(prompts, responses)

    healed = True
    straight = fit(tmp_path / "straight", 4, reward=fails_once)
    calls.clear()
    healed = False
    with pytest.raises(RewardError, match="the scorer is away"):
        fit(tmp_path / "first", 4, reward=fails_once)
    healed = True
    last = newest_checkpoint(tmp_path / "first")
    resumed = fit(tmp_path / "second", 4, reward=fails_once, ckpt_path=last)
    assert_same_run(straight, resumed)


def test_the_checkpoint_holds_no_frozen_weights_and_the_value_head(tmp_path):
    keys = set(fit(tmp_path / "full", 1)["state_dict"])
    assert not any(key.startswith("reference") for key in keys)
    assert "policy.value_head.output.weight" in keys
    keys = set(fit(tmp_path / "lora", 1, lora=4)["state_dict"])
    base = [k for k in keys if k.startswith("policy.base_model") and "lora_" not in k]
    assert base == []


def test_a_module_loads_from_its_checkpoint_alone(tmp_path):
    checkpoint = fit(tmp_path, 1, lora=4)
    module = PPO.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert module.config.learning_rate == 1e-2
    for name, value in module.state_dict().items():
        if name in checkpoint["state_dict"]:
            assert torch.equal(value, checkpoint["state_dict"][name])


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fit(tmp_path / "full", 1)
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        fit(tmp_path / "lora", 2, lora=4, ckpt_path=newest_checkpoint(tmp_path / "full"))


def test_a_checkpoint_of_another_algorithm_is_refused_by_its_name(tmp_path):
    fit(tmp_path, 1)
    path = newest_checkpoint(tmp_path)
    checkpoint = torch.load(path, weights_only=True) | {"algorithm": "GRPO"}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="is of GRPO, this run is of PPO"):
        fit(tmp_path / "ppo", 2, ckpt_path=path)


def test_a_run_that_has_nothing_left_to_do_says_so(tmp_path):
    fit(tmp_path, 2)
    last = newest_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"2 of algo\.num_iterations=2 behind it"):
        fit(tmp_path / "again", 2, ckpt_path=last)
    fit(tmp_path / "more", 3, ckpt_path=last)


def test_a_pickle_from_outside_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path}/executed",))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="is no checkpoint of ours"):
        fit(tmp_path / "run", 1, ckpt_path=tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()
