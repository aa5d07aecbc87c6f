"""Checkpoints that are refused, with nothing changed: damaged, foreign, or harmful ones."""

import hashlib
import json
import pickle
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as Adapters
from peft import get_peft_model
from pipeline_helpers import (
    LONG,
    PARTS,
    batch,
    error_of,
    everything,
    pipeline_of,
    run,
    same,
    sgd,
    start,
    tiny,
    weights,
)
from transformers import LlamaConfig, LlamaForCausalLM

from rlmodules.forward_backward import CheckpointError
from rlmodules.models import LoraConfig, ModelConfig, load_model


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
