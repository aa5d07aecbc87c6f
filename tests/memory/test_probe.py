"""The longest batch first: nothing of the run is another for it, and what does not fit says so."""

import random
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_same
from resume_helpers import SaveAt, fit, settings
from test_train_preferences import QUICK, only
from torch import nn

from rlmodules.algorithms.means import Means
from rlmodules.memory import machine, probe
from rlmodules.memory.probe import LongestBatchFirst
from rlmodules.memory.untouched import untouched
from rlmodules.models import LoraConfig, ModelConfig

RUN = [*QUICK, "algo=dpo", "algo.num_epochs=1", "+trainer.max_steps=1"]
LORA = {"ppo": 0.0, "grpo": 0.0, "dpo": 0.0, "reward": 0.2}
"""Dropout of adapters, which policies take none of."""
OWN = {
    "ppo": {"value_warmup_iterations": 1, "early_stop_kl": 0.01},
    "grpo": {},
    "dpo": {},
    "reward": {"dropout_prob": 0.2},
}


@pytest.fixture
def computed(monkeypatch):
    """The batches that were computed first; random numbers were drawn with each."""
    found, compute = [], probe.compute

    def noting(trainer, module, batch):
        compute(trainer, module, batch)
        torch.rand(3), random.random(), np.random.rand()
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
        found.append(batch)

    monkeypatch.setattr(probe, "compute", noting)
    return found


def first(c, model, option=True):
    told = {"algo": asdict(c), "model": asdict(model), "longest_batch_first": option}
    return LongestBatchFirst(told | {"trainer": {"precision": "32-true", "strategy": "auto"}})


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if "second" not in str(k)
                and not str(k).startswith("time/")}  # fmt: skip
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", LORA)
def test_a_run_is_bit_for_bit_what_it_is_without(name, lora, tmp_path, computed):
    c = settings(name, **OWN[name])
    adapters = LoraConfig(r=4, dropout=LORA[name]) if lora else LoraConfig()
    model = ModelConfig(name="random:tiny", lora=adapters)
    middle = tmp_path / "middle.ckpt"
    plain = fit(name, tmp_path / "plain", c, 3, model=model, callbacks=[SaveAt(middle, 1, 0)])
    assert not computed
    with_it = fit(name, tmp_path / "with", c, 3, model=model, callbacks=[first(c, model)])
    resumed = fit(
        name, tmp_path / "on", c, 3, model=model, callbacks=[first(c, model)], ckpt_path=middle
    )
    assert len(computed) == 2
    for other in (with_it, resumed):
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step",
                     "iteration_states"):  # fmt: skip
            assert_same(without_times(plain[part]), without_times(other[part]), part)


def test_nothing_is_left_of_what_is_computed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model.register_buffer("grown", torch.ones(2))
    model.means, model.window, model.nested, model.limit = Means(), [1, 2], {"a": 1}, 7
    model[0].weight.grad = torch.full((2, 2), 3.0)
    means, grown = model.means, model.grown
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises(ZeroDivisionError), untouched(model):
        model(torch.randn(2, 2)).sum().backward()
        model.means.add({"loss": 1.0})
        model.window[0] += 1
        model.nested["b"] = random.random() + np.random.rand()
        model.limit, model.cache = 8, torch.ones(1)
        grown.add_(1)
        model.grown = torch.zeros(3)
        model[1].p = 0.0
        1 / 0  # noqa: B018
    assert model.means is means and not means.counts and model.limit == 7 and model[1].p == 0.5
    assert (model.window, model.nested, hasattr(model, "cache")) == ([1, 2], {"a": 1}, False)
    assert model.grown is grown and torch.equal(grown, torch.ones(2))
    assert torch.equal(model[0].weight.grad, torch.full((2, 2), 3.0)) and model[0].bias.grad is None
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_it_is_the_longest_batch_whole_and_nothing_is_left_out(command, monkeypatch):
    """PPO's: all rows of a minibatch, max_new_tokens each, although its critic warms up alone."""
    tried = []

    def compute(trainer, module, batch):
        assert module.config.value_warmup_iterations == 0
        tried.append([len(at) for at in batch.tokens.positions])

    monkeypatch.setattr(probe, "compute", compute)
    online = ["algo=ppo", "reward=length", "algo.num_iterations=1", "algo.batch_size=4"]
    online += ["algo.mini_batch_size=2", "algo.max_new_tokens=6", "algo.value_warmup_iterations=1"]
    command(*QUICK, *online, "longest_batch_first=true")
    assert tried == [[6, 6]]


def test_pairs_are_the_heaviest_of_the_run(tmp_path, computed):
    c, model = settings("dpo"), ModelConfig(name="random:tiny")
    seen = []

    class Seen(SaveAt):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(sum(len(s) for pair in batch.sequences for s in pair))

    callbacks = [first(c, model), Seen(tmp_path / "no.ckpt", -1, -1)]
    fit("dpo", tmp_path / "run", c, 3, model=model, callbacks=callbacks)
    tokens = [sum(len(s) for pair in batch.sequences for s in pair) for batch in computed]
    assert tokens == [max(seen)]


def test_what_the_optimizer_will_keep_is_there_meanwhile(tmp_path, monkeypatch):
    c, model = settings("dpo"), ModelConfig(name="random:tiny")
    asked, state_to_come = [], probe.state_to_come

    def noting(*args):
        asked.append(state_to_come(*args).numel())
        return state_to_come(*args)

    monkeypatch.setattr(probe, "state_to_come", noting)
    callbacks = [first(c, model), SaveAt(tmp_path / "middle.ckpt", 0, 1)]
    end = fit("dpo", tmp_path / "run", c, 1, model=model, callbacks=callbacks)
    (state,) = end["optimizer_states"]
    held = sum(x.nbytes for one in state["state"].values() for x in one.values())
    assert asked == [held]
    fit("dpo", tmp_path / "on", c, 2, model=model, callbacks=callbacks[:1],
        ckpt_path=tmp_path / "middle.ckpt")  # fmt: skip
    assert asked == [held, 0]


def test_a_run_that_the_machine_cannot_hold_is_refused_before_its_first_step(
    command, tmp_path, monkeypatch
):
    for name in ("machine_bytes", "available_bytes"):
        monkeypatch.setattr(probe, name, lambda: 2**20)
    said = command(*RUN, "longest_batch_first=true", status=1)
    for text in ("does not fit", "at the", "algo.batch_size", "model.lora.r=16",
                 "longest_batch_first=false"):  # fmt: skip
        assert text in said
    assert not list(only(tmp_path, "outputs/*/*").glob("checkpoints/*"))


def test_less_free_memory_than_it_takes_is_a_warning(command, monkeypatch):
    monkeypatch.setattr(probe, "available_bytes", lambda: 0)
    monkeypatch.setattr(probe, "resident", lambda field: 0)
    assert "the system may kill this process" in command(*RUN, "longest_batch_first=true")


def test_a_device_that_is_full_says_what_to_lower(command, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    monkeypatch.setattr(probe, "compute", full)
    said = command(*RUN, "longest_batch_first=true", status=1)
    for text in ("CUDA out of memory", "by estimate", "weights", "algo.batch_size"):
        assert text in said


def test_a_cpu_computes_it_where_it_is_told_to_alone(tmp_path, computed):
    c, model = settings("dpo"), ModelConfig(name="random:tiny")
    for option in ("auto", False):
        fit("dpo", tmp_path / str(option), c, 1, model=model, callbacks=[first(c, model, option)])
    assert not computed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["longest_batch_first=never"], "longest_batch_first='never': use auto, true or false"),
     (["longest_batch_first=1"], "longest_batch_first=1: use auto, true or false"),
     (["longest_batch_first=true", "model.compile=true"], "true with model.compile=true"),
     (["longest_batch_first=true", "trainer=fsdp"], "true with trainer=fsdp")],
)  # fmt: skip
def test_what_cannot_be_is_refused(command, options, sentence):
    assert sentence in command(*RUN, *options, status=1)


def test_episodes_of_several_turns_have_no_longest_batch_beforehand():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(env=SimpleNamespace()))
    c, model = settings("ppo"), ModelConfig(name="random:tiny")
    assert first(c, model, "auto")._texts(trainer, None) is None
    with pytest.raises(ValueError, match="is known once they are played"):
        first(c, model, True)._texts(trainer, None)


def test_the_machine_says_what_it_has():
    assert 0 < machine.resident("VmRSS") <= machine.resident("VmHWM") < machine.machine_bytes()
    assert machine.available_bytes() <= machine.machine_bytes()
