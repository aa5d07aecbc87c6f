"""Weights in half precision in a loop of one's own."""

import warnings

import pytest
import torch
from pipeline_helpers import LONG, adamw, batch, pipeline_of, same, tiny, weights

from rlmodules import OptimizerConfig, make_optimizer


def masters(model):
    groups = [{"params": list(model.parameters()), "lr": 1e-2, "weight_decay": 0.0}]
    return make_optimizer(OptimizerConfig(), groups)


def steps(pipeline, optimizer, numbers):
    for number in numbers:
        pipeline.forward_backward(**batch(4, 3, seed=number))
        pipeline.optim_step(optimizer).result(timeout=LONG)


def test_a_client_goes_back_to_its_checkpoint_with_its_masters(tmp_path):
    torch.manual_seed(0)
    model = tiny().bfloat16()
    optimizer = masters(model)
    with pipeline_of(model, checkpoint_dir=tmp_path) as pipeline, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        steps(pipeline, optimizer, range(2))
        path = pipeline.save_state("two")["path"]
        steps(pipeline, optimizer, range(2, 4))
        straight = weights(model), optimizer.state_dict()["state"][0]["master"].clone()
        pipeline.load_state(path)
        steps(pipeline, optimizer, range(2, 4))
    assert same(weights(model), straight[0])
    assert torch.equal(optimizer.state_dict()["state"][0]["master"], straight[1])


def test_an_optimizer_that_would_swallow_updates_warns(tmp_path):
    model = tiny().bfloat16()
    with pipeline_of(model, checkpoint_dir=tmp_path) as pipeline:
        pipeline.forward_backward(**batch(4, 3))
        with pytest.warns(UserWarning, match=r"AdamW steps weights in half .*make_optimizer"):
            pipeline.optim_step(adamw(model)).result(timeout=LONG)


def test_a_state_in_hand_is_what_it_was_after_another_is_loaded():
    model = tiny().bfloat16()
    optimizer = masters(model)

    def step():
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()

    step()
    first = optimizer.state_dict()
    kept = first["state"][0]["master"].clone()
    other = {
        key: value | {"master": torch.zeros_like(value["master"])}
        for key, value in first["state"].items()
    }
    optimizer.load_state_dict(first | {"state": other})
    assert torch.equal(first["state"][0]["master"], kept)
    optimizer.load_state_dict(first)
    assert torch.equal(optimizer.state_dict()["state"][0]["master"], kept)
