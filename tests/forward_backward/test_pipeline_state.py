"""Checkpoints of a pipeline: the same run to the last bit, or refused with nothing changed."""

import os
import random
import signal
import subprocess
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_helpers import (
    LONG,
    PARTS,
    Gate,
    adamw,
    batch,
    client_of,
    error_of,
    everything,
    halving,
    pipeline_of,
    run,
    same,
    sgd,
    start,
    tiny,
    weights,
)
from process_helpers import warm_python

from rlmodules.models import LoraConfig, ModelConfig, load_model

FOLDER, TESTS = Path(__file__).parent, Path(__file__).parents[1]


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
    command = [warm_python(ours=True), "-c", textwrap.dedent(code)]
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
