"""A GRPO run that stops and goes on, or is spread over processes, is the run that was not."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from adapter_helpers import adapter_folder
from grpo_helpers import PROMPTS, config, data, half_dull
from helpers import SignalAt, assert_same_run, weights
from lightning.pytorch.callbacks import Callback
from process_helpers import alone_and_together

from datamodules.rollouts.streams import TrainEpisodes
from rlmodules import GRPO, LoraConfig, ModelConfig
from rlmodules.callbacks import AtomicCheckpointIO, RunReport, SaveLast, newest_checkpoint
from rlmodules.callbacks.stopping import StoppedBySignal

SETTINGS = {
    "epochs": {"num_epochs": 2, "beta": 0.1, "importance_sampling_level": "sequence"},
    "resampling": {"max_resamples": 3, "top_k": 50},
    "kl in reward": {"beta": 0.1, "kl_in_reward": True, "baseline": "leave_one_out"},
}


def fit(folder, iterations, *, name="random:tiny", lora=0, ckpt_path=None, callbacks=(), **changes):
    """Train with everything that keeps state switched on; returns the final checkpoint."""
    changes = {"model_name": name, "mini_batch_size": 2, "gradient_accumulation_steps": 2} | changes
    c = config(num_iterations=iterations, learning_rate=1e-2, max_new_tokens=8, **changes)
    module = GRPO(c, ModelConfig(name=name, lora=LoraConfig(r=lora)))
    trainer = L.Trainer(
        max_epochs=iterations,
        accelerator="cpu",
        gradient_clip_val=c.max_grad_norm,
        accumulate_grad_batches=c.gradient_accumulation_steps,
        check_val_every_n_epoch=2,
        logger=False,
        callbacks=[*callbacks, RunReport(folder), SaveLast(folder / "checkpoints")],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    d = data(c, half_dull, eval_prompts=PROMPTS[:2], eval_size=2, eval_generations=2)
    trainer.fit(module, d, ckpt_path=ckpt_path, weights_only=True)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "lora"), [("epochs", 4), ("resampling", 0), ("kl in reward", "adapter")]
)
def test_n_plus_m_iterations_equal_n_then_a_resumed_m(tmp_path, name, lora):
    start = {"name": adapter_folder(tmp_path / "a")} if lora == "adapter" else {"lora": lora}
    settings = SETTINGS[name] | start
    straight = fit(tmp_path / "straight", 4, **settings)
    fit(tmp_path / "first", 2, **settings)
    last = newest_checkpoint(tmp_path / "first")
    resumed = fit(tmp_path / "second", 4, ckpt_path=last, **settings)
    assert_same_run(straight, resumed)
    history = straight["callbacks"]["RunReport"]["history"]
    assert len(history) == 4
    if name == "resampling":
        assert sum(row["rollout/resampled_groups"] for row in history) > 0


@pytest.mark.parametrize(
    ("name", "iteration", "batch"),
    [("epochs", 1, 5), ("resampling", 1, 1), ("kl in reward", 2, 0)],
    ids=["second epoch", "within a window", "first batch of the last iteration"],
)
def test_a_signal_in_the_middle_of_an_iteration_loses_nothing(tmp_path, name, iteration, batch):
    straight = fit(tmp_path / "straight", 3, **SETTINGS[name])
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "first", 3, callbacks=[SignalAt(iteration, batch)], **SETTINGS[name])
    last = newest_checkpoint(tmp_path / "first")
    middle = torch.load(last, weights_only=True)
    resumed = fit(tmp_path / "second", 3, ckpt_path=last, **SETTINGS[name])
    assert_same_run(straight, resumed)
    assert 0 < middle["global_step"] < straight["global_step"]


class Batches(Callback):
    """Counts the minibatches that were trained on."""

    count = 0

    def on_train_batch_end(self, *_):
        self.count += 1


def test_a_resumed_iteration_trains_on_what_was_left_of_it_alone(tmp_path):
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "first", 2, callbacks=[SignalAt(1, 0)])
    counter = Batches()
    fit(
        tmp_path / "second",
        2,
        ckpt_path=newest_checkpoint(tmp_path / "first"),
        callbacks=[counter],
    )
    assert counter.count == 2  # of the four, two were learned from before


def test_a_checkpoint_holds_what_was_trained_and_loads_alone(tmp_path):
    checkpoint = fit(tmp_path, 1, lora=4, beta=0.1)
    assert all("lora_" in key for key in checkpoint["state_dict"])
    module = GRPO.load_from_checkpoint(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert module.config.beta == 0.1
    state, saved = module.policy.base_model.state_dict(), checkpoint["state_dict"]
    assert all(key.startswith("language_model.") for key in saved)  # as it always was
    named = {key.removeprefix("language_model."): weight for key, weight in saved.items()}
    assert named and all(torch.equal(state[key], weight) for key, weight in named.items())
    full = fit(tmp_path / "full", 1, beta=0.1)["state_dict"]
    assert full and not any(key.startswith("reference") for key in full)


# ------------------------------------------------------------------ two processes

SCRIPT = """
import sys
from datetime import timedelta
import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from datamodules import TextGenerationEnv
from grpo_helpers import PROMPTS, config, data, half_dull
from helpers import weights
from rlmodules import GRPO
from rlmodules.callbacks import RunReport

class Components(TextGenerationEnv):
    # Only what the first prompt leads to has the component reward_first.
    def respond(self, tokens):
        result = super().respond(tokens)
        first = {"reward_first": 2.0} if self.render().startswith(PROMPTS[0]) else {}
        return result.__class__(0.5, True, None, metrics=first)

CASES = {
    "dapo": dict(beta=0.1, top_k=200, temperature=0.7),
    "grpo": dict(loss_type="grpo", baseline="batch", scale_rewards="batch",
                 importance_sampling_level="sequence"),
    "components": dict(),
}
devices, folder = int(sys.argv[1]), sys.argv[2]
results = {}
for name, settings in CASES.items():
    c = config(batch_size=8, mini_batch_size=4, gradient_accumulation_steps=2, num_generations=2,
               num_iterations=2, max_grad_norm=1e9, **settings)
    module = GRPO(c)
    module.configure_optimizers = lambda: torch.optim.SGD(
        [p for p in module.parameters() if p.requires_grad], lr=0.1)
    report = RunReport(folder)
    report.on_train_end = lambda *_: None
    strategy = DDPStrategy(timeout=timedelta(seconds=30)) if devices > 1 else "auto"
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", devices=devices, accumulate_grad_batches=2,
        strategy=strategy, gradient_clip_val=c.max_grad_norm,
        logger=False, callbacks=[report], enable_progress_bar=False, enable_checkpointing=True,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        default_root_dir=folder,
    )
    d = data(c, half_dull, eval_prompts=PROMPTS[:3], eval_size=3, eval_generations=2)
    if name == "components":
        d.env = lambda tokenizer, prompts: Components(tokenizer, prompts, reward_fn=half_dull)
    trainer.fit(module, d)
    results[name] = {"weights": weights(module), "history": report.history}
    if trainer.is_global_zero:
        torch.save(results, f"{folder}/{devices}.pt")
"""


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """What one process and two come to in each case, and what two wrote to stderr."""
    return alone_and_together(tmp_path_factory.mktemp("processes"), SCRIPT)


@pytest.mark.parametrize("case", ["dapo", "grpo", "components"])
def test_two_processes_take_the_steps_of_one(one_and_two, case):
    """Two optimizer steps over 8 episodes each: the same texts, weights and metrics."""
    assert case in one_and_two[1], one_and_two[2][-3000:]
    alone, together = one_and_two[0][case], one_and_two[1][case]
    torch.testing.assert_close(together["weights"], alone["weights"], rtol=0, atol=2e-6)
    assert (alone["weights"] - weights(GRPO(config()))).abs().max() > 1e-3
    for a, b in zip(alone["history"], together["history"], strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            # Minibatches differ in make-up: only what all episodes are the mean of must agree.
            if name.startswith(("rollout/", "val/")):
                assert b[name] == pytest.approx(value, abs=2e-5), name


def test_processes_that_cannot_share_the_groups_are_named():
    plan = data(config(batch_size=12, mini_batch_size=4, num_generations=4)).plan
    with pytest.raises(ValueError, match=r"algo\.batch_size=12 .* 2 processes x num_generations"):
        TrainEpisodes(SimpleNamespace(world_size=2), None, [0], plan)
