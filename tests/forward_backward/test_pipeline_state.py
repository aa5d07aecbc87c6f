"""Checkpoints of a pipeline: the same run to the last bit, or refused with nothing changed."""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as Adapters
from peft import get_peft_model
from pipeline_helpers import (
    LONG,
    Gate,
    adamw,
    batch,
    client_of,
    error_of,
    everything,
    mean_nll,
    pipeline_of,
    same,
    sgd,
    tiny,
    weights,
)
from transformers import LlamaConfig, LlamaForCausalLM

from rlmodules.forward_backward import CheckpointError
from rlmodules.models import LoraConfig, ModelConfig, load_model

FOLDER, TESTS = Path(__file__).parent, Path(__file__).parents[1]
PARTS = ("model_path", "optimizer_path", "state_path")


def halving(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)


def noisy(model, inputs, outputs):
    """A loss that draws random numbers of every kind."""
    noise = torch.randn(()) + random.random() + np.random.rand()
    return mean_nll(model, inputs, outputs) * (1 + 0.1 * noise)


def run(pipeline, optimizer, scheduler, passes):
    """Passes of the run by number; every second one is followed by a step."""
    said = []
    for number in passes:
        texts = batch(4 + number, 3, seed=number)
        if number % 3 == 1:
            future = pipeline.forward_backward_custom(**texts, custom_loss_fn=noisy)
        else:
            future = pipeline.forward_backward(**texts)
        said.append(future.result(timeout=LONG).loss)
        if number % 2 == 1:
            step = pipeline.optim_step(optimizer, scheduler).result(timeout=LONG)
            said += [step.step, step.grad_norm, step.learning_rate, step.num_tokens]
        said.append(pipeline.sample([5, 6], max_tokens=4)["tokens"])
    return said


def start(checkpoint_dir, make=adamw, steps=2):
    """A fresh model with what trains it."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    model = tiny()
    optimizer = make(model)
    options = {"checkpoint_dir": checkpoint_dir, "gradient_accumulation_steps": steps}
    return pipeline_of(model, **options), model, optimizer, halving(optimizer)


def save_and_be_killed(folder):
    """What the other process does."""
    torch.set_num_threads(1)
    pipeline, _, optimizer, scheduler = start(folder)
    run(pipeline, optimizer, scheduler, range(5))
    pipeline.save_state("five")
    pipeline.forward_backward(**batch(400, 400))  # on its way when the process dies
    os.kill(os.getpid(), signal.SIGKILL)


# ----------------------------------------------------------------------- the same run


def test_a_run_that_was_killed_goes_on_in_another_process_bit_for_bit(tmp_path):
    code = f"""
        import sys
        sys.path.insert(0, {str(FOLDER)!r})
        from test_pipeline_state import save_and_be_killed
        save_and_be_killed({str(tmp_path)!r})
    """
    root = os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}:{root}"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    killed = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    pipeline, model, optimizer, scheduler = start(tmp_path / "straight")
    with pipeline:
        run(pipeline, optimizer, scheduler, range(5))
        straight = run(pipeline, optimizer, scheduler, range(5, 10))
        expected = everything(model, optimizer), scheduler.state_dict()
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        torch.manual_seed(99), random.seed(99), np.random.seed(99)
        pipeline.load_state("five")
        assert run(pipeline, optimizer, scheduler, range(5, 10)) == straight
        assert same(expected[0], everything(model, optimizer))
        assert scheduler.state_dict() == expected[1]


@pytest.mark.parametrize("at", [3, 4], ids=["within a window", "after a step"])
def test_a_pipeline_goes_back_to_its_checkpoint_bit_for_bit(at, tmp_path):
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(at))
        info = pipeline.save_state("here")
        saved = everything(model, optimizer)
        straight = run(pipeline, optimizer, scheduler, range(at, 9))
        expected = everything(model, optimizer)
        loaded = pipeline.load_state(info["path"])
        assert same(saved, everything(model, optimizer))
        assert loaded == info
        assert run(pipeline, optimizer, scheduler, range(at, 9)) == straight
        assert same(expected, everything(model, optimizer))


def test_a_pipeline_goes_back_to_before_its_first_step_bit_for_bit(tmp_path):
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        pipeline.save_state("first")
        straight = run(pipeline, optimizer, scheduler, range(4))
        expected = everything(model, optimizer)
        pipeline.load_state("first")
        assert run(pipeline, optimizer, scheduler, range(4)) == straight
        assert same(expected, everything(model, optimizer))


def test_a_client_goes_back_to_before_its_first_step_bit_for_bit(tmp_path):
    model = tiny()
    options = {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "scheduler": halving}
    with client_of(model, checkpoint_dir=tmp_path, **options) as client:

        def train():
            for number in range(3):
                client.forward_backward(batch(5, number + 2, seed=number))
                rate = client.optim_step().result(timeout=LONG).learning_rate
            return rate, everything(model, client.optimizer)

        client.save_state("first").result(timeout=LONG)
        rate, expected = train()
        client.load_state("first").result(timeout=LONG)
        again, found = train()
        assert rate == again and same(expected, found)


def test_a_client_with_its_own_optimizer_and_scheduler_goes_on_bit_for_bit(tmp_path):
    options = {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "scheduler": halving}

    def train(client, numbers):
        said = []
        for number in numbers:
            loss = client.forward_backward(batch(5, number + 2, seed=number))
            step = client.optim_step().result(timeout=LONG)
            said += [loss.result(timeout=LONG).loss, step.learning_rate, step.step]
        return said

    model = tiny()
    with client_of(model, checkpoint_dir=tmp_path, **options) as client:
        train(client, range(3))
        client.save_state("three").result(timeout=LONG)
        straight, expected = train(client, range(3, 6)), everything(model, client.optimizer)
    model = tiny()
    with client_of(model, checkpoint_dir=tmp_path, **options) as client:
        client.load_state("three").result(timeout=LONG)
        assert train(client, range(3, 6)) == straight
        assert same(expected, everything(model, client.optimizer))


def test_an_optimizer_made_after_loading_takes_the_saved_state(tmp_path):
    """As in a notebook: load, make the optimizer anew, go on."""
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(4))
        pipeline.save_state("four")
        straight = run(pipeline, optimizer, scheduler, range(4, 8))
        expected = everything(model, optimizer)
        pipeline.load_state("four")
        optimizer = adamw(model)
        scheduler = halving(optimizer)
        assert run(pipeline, optimizer, scheduler, range(4, 8)) == straight
        assert same(expected, everything(model, optimizer))


def test_a_checkpoint_that_is_loaded_and_saved_again_is_the_same(tmp_path):
    pipeline, _, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(5))
        pipeline.save_state("one")
        straight = run(pipeline, optimizer, scheduler, range(5, 8))
    pipeline, _, optimizer, scheduler = start(tmp_path)
    with pipeline:
        pipeline.load_state("one")
        pipeline.save_state("two")  # before the optimizer is known
    pipeline, _, optimizer, scheduler = start(tmp_path)
    with pipeline:
        pipeline.load_state("two")
        assert run(pipeline, optimizer, scheduler, range(5, 8)) == straight


def test_lora_adapters_go_on_bit_for_bit(tmp_path):
    def fresh():
        torch.manual_seed(7)
        model = load_model(ModelConfig(name="random:tiny", lora=LoraConfig(r=4)))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        return model, optimizer, pipeline_of(model, checkpoint_dir=tmp_path)

    def train(pipeline, optimizer, numbers):
        for number in numbers:
            pipeline.forward_backward(**batch(6, 3, seed=number))
            pipeline.optim_step(optimizer).result(timeout=LONG)

    model, optimizer, pipeline = fresh()
    with pipeline:
        train(pipeline, optimizer, range(3))
        pipeline.save_state("lora")
        train(pipeline, optimizer, range(3, 5))
        expected = everything(model, optimizer)
    model, optimizer, pipeline = fresh()
    with pipeline:
        pipeline.load_state("lora")
        train(pipeline, optimizer, range(3, 5))
        assert same(expected, everything(model, optimizer))


# ----------------------------------------------------------------------- what is written


def test_what_is_saved_is_told_and_lies_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pipeline_of() as pipeline:
        info = pipeline.save_state("checkpoint_1000")
        assert Path(info["path"]).resolve() == (tmp_path / "checkpoints/checkpoint_1000").resolve()
        for part in PARTS:
            assert Path(info[part]).is_file() and Path(info[part]).parent == Path(info["path"])
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["checkpoint_1000"]
        pipeline.load_state("checkpoint_1000")
        pipeline.load_state("checkpoints/checkpoint_1000")
        pipeline.load_state(Path(info["path"]).resolve())


def test_a_checkpoint_holds_what_was_queued_before_it_and_nothing_queued_after(tmp_path):
    texts = [batch(6, 3, seed=seed) for seed in range(2)]
    one, other = tiny(), tiny()
    with pipeline_of(one) as pipeline:
        pipeline.forward_backward(**texts[0])
        pipeline.optim_step(sgd(one)).result(timeout=LONG)
    with pipeline_of(other, checkpoint_dir=tmp_path) as pipeline:
        optimizer = sgd(other)
        # A busy model: all of these are waiting when the last is queued.
        with Gate(pipeline):
            pipeline.optim_step(sgd(other, lr=0.0))
            pipeline.forward_backward(**texts[0])
            pipeline.optim_step(optimizer)
            saved = pipeline.save_state("between", wait=False)
            pipeline.forward_backward(**texts[1])
            last = pipeline.optim_step(optimizer)
        saved.result(timeout=LONG), last.result(timeout=LONG)
        assert not same(weights(one), weights(other))
        pipeline.load_state("between")
        assert same(weights(one), weights(other))


def test_a_checkpoint_queued_before_its_loading_is_there_when_it_is_loaded(tmp_path):
    model = tiny()
    with client_of(model, checkpoint_dir=tmp_path) as client:
        optimizer, before = sgd(model), weights(model)
        with Gate(client):
            client.optim_step(sgd(model, lr=0.0))
            saved = client.save_state("here")
            client.forward_backward(batch(5))
            stepped = client.optim_step(optimizer)
            loaded = client.load_state("here")
            after = client.forward(batch(5))
        saved.result(timeout=LONG), stepped.result(timeout=LONG)
        loaded.result(timeout=LONG), after.result(timeout=LONG)
        assert same(before, weights(model))


def test_checkpoints_of_one_name_queued_one_after_another_end_with_the_last(tmp_path):
    for attempt in range(5):
        model = tiny()
        folder = tmp_path / str(attempt)
        with pipeline_of(model, max_workers=4, checkpoint_dir=folder) as pipeline:
            optimizer, saved = sgd(model), []
            for number in range(6):
                pipeline.forward_backward(**batch(5, seed=number))
                pipeline.optim_step(optimizer)
                saved.append(pipeline.save_state("latest", wait=False))
            for future in saved:
                future.result(timeout=LONG)
            expected = weights(model)
            pipeline.forward_backward(**batch(5))
            pipeline.optim_step(optimizer).result(timeout=LONG)
            pipeline.load_state("latest")
            assert same(expected, weights(model))
            assert [path.name for path in folder.iterdir()] == ["latest"]


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("function", ["torch.save", "os.replace"])
def test_saving_over_a_checkpoint_that_fails_half_way_keeps_the_old_one(
    function, nth, tmp_path, monkeypatch
):
    model = tiny()
    with pipeline_of(model, checkpoint_dir=tmp_path) as pipeline:
        optimizer = adamw(model)
        pipeline.forward_backward(**batch(5))
        pipeline.optim_step(optimizer)
        pipeline.save_state("name")
        saved = everything(model, optimizer)
        pipeline.forward_backward(**batch(5))
        pipeline.optim_step(optimizer).result(timeout=LONG)
        later = everything(model, optimizer)
        module, name = (torch, "save") if function == "torch.save" else (os, "replace")
        original, calls = getattr(module, name), []

        def fails(*args, **kwargs):
            calls.append(args)
            if len(calls) == nth:
                raise OSError("no space left on device")
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fails)
            with pytest.raises(OSError, match="no space left"):
                pipeline.save_state("name")
        assert len(calls) >= nth and same(later, everything(model, optimizer))
        assert [path.name for path in tmp_path.iterdir()] == ["name"]
        pipeline.load_state("name")
        assert same(saved, everything(model, optimizer))
        pipeline.save_state("name")
        pipeline.load_state("name")


def test_a_folder_that_is_no_checkpoint_is_not_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pipeline_of(checkpoint_dir=tmp_path) as pipeline:
        assert error_of(lambda: pipeline.save_state("thesis", wait=False)) is not None
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


# ----------------------------------------------------------------------- what is refused


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def refuse(pipeline, model, optimizer, path, expected=CheckpointError):
    """Loading fails and changes nothing, at once or later."""
    before, states = everything(model, optimizer), (torch.get_rng_state(), random.getstate())
    with pytest.raises(expected):
        pipeline.load_state(path)
    assert same(before, everything(model, optimizer))
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[1]


@pytest.mark.parametrize("damage", [truncate, alter, empty, Path.unlink])
@pytest.mark.parametrize("part", [*PARTS, "manifest"])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(part, damage, tmp_path):
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(3))
        info = pipeline.save_state("here")
        info["manifest"] = Path(info["path"]) / "manifest.json"
        damage(Path(info[part]))
        run(pipeline, optimizer, scheduler, range(3, 5))
        refuse(pipeline, model, optimizer, "here")
        found = run(pipeline, optimizer, scheduler, range(5, 6))
    pipeline, _, optimizer, scheduler = start(tmp_path)
    with pipeline:
        straight = run(pipeline, optimizer, scheduler, range(6))
    assert straight[-len(found) :] == found


def test_a_checkpoint_that_is_not_there_is_refused_and_changes_nothing(tmp_path):
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(3))
        refuse(pipeline, model, optimizer, "nowhere")
        refuse(pipeline, model, optimizer, tmp_path / "nor" / "here")
        (tmp_path / "empty").mkdir()
        refuse(pipeline, model, optimizer, "empty")
        run(pipeline, optimizer, scheduler, range(3, 4))


def other_size():
    options = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=259, hidden_size=32, intermediate_size=64, **options)
    return LlamaForCausalLM(config)


def other_depth():
    config = LlamaConfig(**tiny().config.to_dict() | {"num_hidden_layers": 1})
    return LlamaForCausalLM(config)


def other_type():
    return tiny().to(torch.bfloat16)


def adapters():
    return load_model(ModelConfig(name="random:tiny", lora=LoraConfig(r=4)))


@pytest.mark.parametrize("other", [other_size, other_depth, other_type, adapters])
def test_a_checkpoint_of_another_model_is_refused_and_changes_nothing(other, tmp_path):
    with pipeline_of(other(), checkpoint_dir=tmp_path) as pipeline:
        pipeline.save_state("theirs")
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(3))
        refuse(pipeline, model, optimizer, "theirs")
        run(pipeline, optimizer, scheduler, range(3, 4))


def test_adapters_of_another_base_are_refused(tmp_path):
    base = tiny()
    with torch.no_grad():
        next(base.parameters()).add_(1e-3)
    with pipeline_of(get_peft_model(base, Adapters(r=2)), checkpoint_dir=tmp_path) as pipeline:
        pipeline.save_state("theirs")
    with pipeline_of(get_peft_model(tiny(), Adapters(r=2)), checkpoint_dir=tmp_path) as pipeline:
        with pytest.raises(CheckpointError, match="another base"):
            pipeline.load_state("theirs")
        pipeline.save_state("ours")
        pipeline.load_state("ours")


def test_a_checkpoint_whose_optimizer_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    def in_groups(model):
        first, *rest = model.parameters()
        return torch.optim.AdamW([{"params": [first], "lr": 1e-3}, {"params": rest}], lr=1e-2)

    pipeline, _, optimizer, scheduler = start(tmp_path, make=in_groups)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(3))
        pipeline.save_state("groups")
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(3))
        refuse(pipeline, model, optimizer, "groups", expected=Exception)
        run(pipeline, optimizer, scheduler, range(3, 4))


def test_a_saved_optimizer_state_is_not_lost_on_one_that_it_does_not_fit(tmp_path):
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(4))
        pipeline.save_state("four")
        straight = run(pipeline, optimizer, scheduler, range(4, 8))
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        pipeline.load_state("four")
        pipeline.save_state("again")
        for number in (4, 5):
            pipeline.forward_backward(**batch(4, seed=number)).result(timeout=LONG)
        first, *rest = model.parameters()
        wrong = torch.optim.AdamW([{"params": [first]}, {"params": rest}])
        before = everything(model)
        assert error_of(lambda: pipeline.optim_step(wrong)) is not None
        assert same(before, everything(model))
        pipeline.optim_step(optimizer, scheduler).result(timeout=LONG)
        steps = {float(state["step"]) for state in optimizer.state.values()}
        assert steps == {3.0}  # two before the checkpoint, one after it
        pipeline.load_state("again")
        assert run(pipeline, optimizer, scheduler, range(4, 8)) == straight


def test_a_window_saved_half_full_is_not_taken_for_a_full_one_of_another_size(tmp_path):
    texts = batch(9, 4)

    def stepped(model, pipeline):
        optimizer = sgd(model)
        step = pipeline.optim_step(optimizer, max_grad_norm=None)
        step.result(timeout=LONG)
        return weights(model)

    pipeline, _, _, _ = start(tmp_path, steps=3)
    with pipeline:
        for _ in range(2):
            pipeline.forward_backward(**texts).result(timeout=LONG)
        pipeline.save_state("two of three")
    plain, model = tiny(), tiny()
    with pipeline_of(plain) as pipeline:
        pipeline.forward_backward(**texts).result(timeout=LONG)
        expected = stepped(plain, pipeline)
    with pipeline_of(model, checkpoint_dir=tmp_path) as pipeline:
        before = everything(model)
        try:
            pipeline.load_state("two of three")
        except ValueError:
            assert same(before, everything(model))
            return
        try:
            found = stepped(model, pipeline)
        except RuntimeError:
            assert same(before[0], weights(model))
            return
        # Two equal passes have the mean gradient of one.
        for name, weight in expected.items():
            assert torch.allclose(found[name], weight, atol=1e-6), name


class Bomb:
    """Executes code where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def sign(info):
    """Make the manifest agree with what the files hold now."""
    manifest = Path(info["path"]) / "manifest.json"
    contents = json.loads(manifest.read_text())
    for part in PARTS:
        data = Path(info[part]).read_bytes()
        contents["files"][Path(info[part]).name] = [len(data), hashlib.sha256(data).hexdigest()]
    manifest.write_text(json.dumps(contents))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_pickle_that_executes_code_is_refused_and_not_executed(part, form, tmp_path):
    fuse, bomb = tmp_path / "executed", tmp_path / "bomb"
    pipeline, model, optimizer, scheduler = start(tmp_path / "saved")
    with pipeline:
        run(pipeline, optimizer, scheduler, range(3))
        info = pipeline.save_state("here")
        if form == "pickle":
            bomb.write_bytes(pickle.dumps(Bomb(fuse), protocol=2))
        else:
            torch.save(Bomb(fuse), bomb)
        Path(info[part]).write_bytes(bomb.read_bytes())
        refuse(pipeline, model, optimizer, "here")
        sign(info)
        refuse(pipeline, model, optimizer, "here", expected=Exception)
    assert not fuse.exists()
    if form == "pickle":
        pickle.loads(bomb.read_bytes())
    else:
        torch.load(bomb, weights_only=False)
    assert fuse.exists()  # it is one that would have


@pytest.mark.parametrize("part", PARTS)
def test_what_cannot_be_read_is_a_checkpoint_error_even_where_the_manifest_agrees(part, tmp_path):
    pipeline, model, optimizer, scheduler = start(tmp_path)
    with pipeline:
        run(pipeline, optimizer, scheduler, range(3))
        info = pipeline.save_state("here")
        Path(info[part]).write_bytes(b"no tensors at all, but some text")
        sign(info)
        refuse(pipeline, model, optimizer, "here")
