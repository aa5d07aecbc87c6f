"""Policy and reference: what a reference is, and that training never reaches it."""

import copy
from functools import partial

import pytest
import torch
from pipeline_helpers import (
    LONG,
    Gate,
    batch,
    client_of,
    critic,
    everything,
    gradients,
    mean_nll,
    predicted,
    same,
    sgd,
    tiny,
    weights,
)
from torch.testing import assert_close

from rlmodules.forward_backward import AsyncTrainingClient, ForwardBackwardPipeline
from rlmodules.models import LoraConfig, ModelConfig, PPOModel, load_model


def lora(**settings):
    """A model with adapters that already say something else than it."""
    torch.manual_seed(1)
    model = load_model(ModelConfig(name="random:tiny", lora=LoraConfig(r=4, **settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return model


def logprobs_of(model, texts):
    """By transformers' own logits: [B, T], zeros where nothing is predicted."""
    with torch.no_grad():
        logits = model(**texts).logits[:, :-1].log_softmax(-1)
    found = torch.zeros(texts["input_ids"].shape)
    found[:, 1:] = logits.gather(-1, texts["input_ids"][:, 1:, None]).squeeze(-1)
    return found * predicted(texts)


# ----------------------------------------------------------------------- a reference model


def test_forward_says_what_the_model_and_what_its_reference_says():
    torch.manual_seed(2)
    model, reference, texts = tiny(), tiny(), batch(9, 4)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.5)
    expected = logprobs_of(model, texts), logprobs_of(reference, texts)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    with client_of(model, reference) as client:
        own = client.forward(texts).result(timeout=LONG)
        other = client.forward(texts, use_reference=True).result(timeout=LONG)
        warm = client.forward(texts, use_reference=True, temperature=2.0).result(timeout=LONG)
        full = client.forward(texts, use_reference=True, return_logits=True).result(timeout=LONG)
    assert_close(own.logprobs, expected[0], atol=1e-5, rtol=0)
    assert_close(other.logprobs, expected[1], atol=1e-5, rtol=0)
    assert torch.equal(other.mask, predicted(texts)) and other.logits is None
    assert (warm.logprobs - other.logprobs).abs().max() > 1e-3
    assert full.logits.shape == (2, 9, 259)


def test_a_reference_model_keeps_its_weights_while_the_policy_trains():
    model, texts = tiny(), batch(9, 4)
    reference = copy.deepcopy(model).train()
    before, start = weights(reference), weights(model)
    with client_of(model, reference, optimizer=torch.optim.AdamW) as client:
        first = client.forward(texts, use_reference=True).result(timeout=LONG).logprobs
        for seed in range(4):
            client.forward_backward(batch(5, seed=seed))
            client.forward(texts, use_reference=True)
            client.optim_step()
        last = client.forward(texts, use_reference=True).result(timeout=LONG).logprobs
        own = client.forward(texts).result(timeout=LONG).logprobs
    assert same(before, weights(reference)) and not same(start, weights(model))
    assert torch.equal(first, last) and not torch.equal(own, last)
    assert all(p.grad is None and not p.requires_grad for p in reference.parameters())


def test_a_reference_speaks_without_dropout():
    reference = lora(dropout=0.5).train()
    texts = batch(9, 4)
    expected = logprobs_of(copy.deepcopy(reference).eval(), texts)
    with client_of(reference=reference) as client:
        for _ in range(3):
            said = client.forward(texts, use_reference=True).result(timeout=LONG).logprobs
            assert_close(said, expected, atol=1e-5, rtol=0)


def test_a_model_cannot_be_its_own_reference_by_being_given_twice():
    model = tiny()
    with pytest.raises(ValueError, match="reference_model"):
        AsyncTrainingClient(model, model, "cpu")


def test_many_reference_forwards_keep_their_order_beside_a_model_that_is_busy():
    texts = [batch(3 + i % 5, seed=i) for i in range(20)]
    reference = tiny()
    expected = [logprobs_of(reference, t) for t in texts]
    with client_of(reference=reference) as client, Gate(client) as gate:
        futures = [client.forward(t, use_reference=True) for t in texts]
        for future, logprobs in zip(futures, expected, strict=True):
            said = future.result(timeout=LONG).logprobs
            assert_close(said, logprobs, atol=1e-5, rtol=0)
        assert not gate.future.done()


# ----------------------------------------------------------------------- adapters


@pytest.mark.parametrize("fresh", [True, False])
def test_the_reference_of_adapters_is_the_model_as_it_came(fresh):
    texts, model = batch(9, 4), lora(dropout=0.3)
    if fresh:
        model = load_model(ModelConfig(name="random:tiny", lora=LoraConfig(r=4, dropout=0.3)))
    came = logprobs_of(copy.deepcopy(model).eval(), texts)
    assert bool((came - logprobs_of(tiny(), texts)).abs().max() > 1e-2) is not fresh
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    with client_of(model) as client:
        for seed in range(3):
            own = client.forward(texts)
            reference = client.forward(texts, use_reference=True)
            again = client.forward(texts)
            assert_close(reference.result(timeout=LONG).logprobs, came, atol=1e-5, rtol=0)
            own = own.result(timeout=LONG).logprobs
            assert torch.equal(own, again.result(timeout=LONG).logprobs)
            assert bool((own - came).abs().max() > 1e-3) is bool(seed)
            client.forward_backward(batch(6, seed=seed))
            client.optim_step(optimizer).result(timeout=LONG)


def test_a_reference_forward_of_adapters_changes_nothing_of_their_training():
    model, texts = lora(), batch(9, 4)
    for name, parameter in model.named_parameters():
        if "lora_A" in name and "layers.0" in name:
            parameter.requires_grad_(False)  # frozen by the researcher
    with client_of(model, gradient_accumulation_steps=2) as client:
        client.forward_backward(texts).result(timeout=LONG)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        before, mode = everything(model), model.training
        client.forward(texts, use_reference=True).result(timeout=LONG)
        assert same(before, everything(model)) and model.training == mode
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained


def test_the_reference_of_adapters_below_a_critic_is_the_model_as_it_came():
    model, texts = PPOModel(lora()), batch(9, 4)
    with client_of(model, optimizer=partial(torch.optim.SGD, lr=1.0)) as client:
        client.forward_backward(texts)
        client.optim_step()
        said = client.forward(texts, use_reference=True).result(timeout=LONG)
        own = client.forward(texts).result(timeout=LONG)
    assert_close(said.logprobs, logprobs_of(lora(), texts), atol=1e-5, rtol=0)
    assert_close(own.logprobs, logprobs_of(model.base_model, texts), atol=1e-5, rtol=0)
    assert (own.logprobs - said.logprobs).abs().max() > 1e-3


def test_a_reference_model_comes_before_adapters_that_are_off():
    texts, reference = batch(9, 4), tiny()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.5)
    with client_of(lora(), reference) as client:
        said = client.forward(texts, use_reference=True).result(timeout=LONG)
    assert_close(said.logprobs, logprobs_of(reference, texts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [tiny, critic])
def test_without_adapters_and_without_a_reference_model_there_is_a_clear_error(make):
    with client_of(make()) as client:
        future = client.forward(batch(5), use_reference=True)
        with pytest.raises(ValueError, match="reference"):
            future.result(timeout=LONG)
        client.forward(batch(5)).result(timeout=LONG)


# ----------------------------------------------------------------------- batches


def test_a_batch_may_hold_what_its_loss_takes_and_keywords_add_to_it():
    texts = batch(9, 4)
    arguments = {"old_logprobs": torch.full((2, 9), -5.5), "advantages": torch.tensor([1.0, -2.0])}
    with client_of(gradient_accumulation_steps=4) as client:
        whole = client.forward_backward({**texts, **arguments}, loss_fn="importance_sampling")
        apart = client.forward_backward(texts, "importance_sampling", **arguments)
        forward = client.forward({**texts, **arguments})
        custom = client.forward_backward_custom(
            {**texts, "advantages": arguments["advantages"]},
            lambda model, inputs, outputs, advantages: (
                mean_nll(model, inputs, outputs) * advantages.sum()
            ),
        )
        loss = whole.result(timeout=LONG).loss
        assert loss == apart.result(timeout=LONG).loss
        logprobs = forward.result(timeout=LONG).logprobs
        mask = predicted(texts)
        advantages = arguments["advantages"][:, None].expand(2, 9)[mask]
        expected = -((logprobs[mask] + 5.5).exp() * advantages).mean().item()
        assert loss == pytest.approx(expected, abs=1e-5)
        nll = -logprobs[mask].mean().item()
        assert custom.result(timeout=LONG).loss == pytest.approx(-nll, abs=1e-5)


def test_the_callers_batch_is_left_as_it_is():
    texts = batch(9, 4) | {"labels": batch(9, 4)["input_ids"]}
    before = copy.deepcopy(texts)
    with client_of(reference=tiny()) as client:
        client.forward_backward(texts).result(timeout=LONG)
        client.forward(texts, use_reference=True).result(timeout=LONG)
    assert texts.keys() == before.keys()
    assert all(torch.equal(texts[name], before[name]) for name in texts)


def test_a_client_and_a_pipeline_train_the_same():
    def train(make):
        model = tiny()
        with make(model, device="cpu", gradient_accumulation_steps=2) as it:
            for seed in range(4):
                texts = batch(6, 3, seed=seed)
                if make is AsyncTrainingClient:
                    it.forward_backward(texts)
                else:
                    it.forward_backward(**texts)
                if seed % 2:
                    it.optim_step(sgd(model)).result(timeout=LONG)
        return weights(model)

    assert same(train(AsyncTrainingClient), train(ForwardBackwardPipeline))


@pytest.mark.parametrize("make", [AsyncTrainingClient, ForwardBackwardPipeline])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"max_workers": 0}, "max_workers"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"precision": "16-mixed"}, "precision"),
        ({"device": "tpu:0"}, "device"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(make, wrong, named):
    with pytest.raises(ValueError, match=named):
        make(tiny(), **{"device": "cpu"} | wrong)


def test_half_precision_weights_are_trained_in_their_own_type():
    model = tiny()
    with client_of(model, precision="bf16-true") as client:
        client.forward_backward(batch(6, 3)).result(timeout=LONG)
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert any(g is not None and bool(g.any()) for g in gradients(model).values())
        client.optim_step(sgd(model)).result(timeout=LONG)
