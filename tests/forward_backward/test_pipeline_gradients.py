"""Gradients and steps: bit for bit a plain loop, all or nothing, never skipped in silence."""

import copy

import pytest
import torch
from pipeline_helpers import (
    BATCHES,
    LONG,
    adamw,
    batch,
    client_of,
    distance,
    error_of,
    everything,
    gradients,
    mean_nll,
    pipeline_of,
    same,
    sgd,
    tiny,
    weights,
)
from torch.testing import assert_close

from rlmodules.forward_backward.tokens import tokens_of
from rlmodules.models import LoraConfig, ModelConfig, PolicyModel, load_model

OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def plain_loss(model, texts):
    """The mean over tokens, with gradients, and how many there are."""
    batch, policy = tokens_of(**texts), PolicyModel(model)
    policy.enable_packing()
    return -policy.score(batch.tokens).logprobs.mean(), batch.count


# ----------------------------------------------------------------------- plain loops


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.05, None])
def test_one_pass_a_step_is_bit_for_bit_a_plain_loop(kind, max_grad_norm):
    plain = tiny()
    model = copy.deepcopy(plain)
    optimizer, scheduled = OPTIMIZERS[kind](plain), OPTIMIZERS[kind](model)
    norms, expected = [], []
    for texts in BATCHES:
        loss, _ = plain_loss(plain, texts)
        loss.backward()
        largest = float("inf") if max_grad_norm is None else max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), largest)
        expected.append((loss.item(), norm.item()))
        optimizer.step()
        optimizer.zero_grad()
    with pipeline_of(model) as pipeline:
        for texts in BATCHES:
            loss = pipeline.forward_backward(**texts).result(timeout=LONG).loss
            step = pipeline.optim_step(scheduled, max_grad_norm=max_grad_norm)
            norms.append((loss, step.result(timeout=LONG).grad_norm))
    assert norms == expected
    assert same(weights(plain), weights(model))
    assert distance(weights(tiny()), weights(model)) > 1e-4


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_several_passes_a_step_are_bit_for_bit_a_plain_loop_that_weighs_by_tokens(kind):
    plain = tiny()
    model = copy.deepcopy(plain)
    optimizer, scheduled = OPTIMIZERS[kind](plain), OPTIMIZERS[kind](model)
    expected = []
    for window in (BATCHES[:2], BATCHES[2:]):
        total = 0
        for texts in window:
            loss, tokens = plain_loss(plain, texts)
            (loss * tokens).backward()
            total += tokens
        for p in plain.parameters():
            p.grad /= total
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        expected.append((total, norm.item()))
        optimizer.step()
        optimizer.zero_grad()
    results = []
    with pipeline_of(model, gradient_accumulation_steps=2) as pipeline:
        for i, texts in enumerate(BATCHES):
            pipeline.forward_backward(**texts)
            if i % 2:
                step = pipeline.optim_step(scheduled, max_grad_norm=1.0).result(timeout=LONG)
                results.append((step.num_tokens, step.grad_norm))
    assert results == expected
    assert same(weights(plain), weights(model))


def test_a_scheduler_is_stepped_once_a_step_after_it():
    model = tiny()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    rates = []
    with pipeline_of(model) as pipeline:
        for _ in range(3):
            pipeline.forward_backward(**BATCHES[0])
            rates.append(pipeline.optim_step(optimizer, scheduler).result(timeout=LONG))
    assert [r.learning_rate for r in rates] == [pytest.approx(0.1 * 0.5**n) for n in range(3)]
    assert [r.step for r in rates] == [1, 2, 3]
    assert scheduler.last_epoch == 3


def test_gradients_and_loss_are_those_of_transformers_own_logits():
    texts = batch(9, 4, 6)
    model = tiny()
    plain = copy.deepcopy(model)
    labels = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
    logits = plain(**texts).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    expected.backward()
    with pipeline_of(model) as pipeline:
        result = pipeline.forward_backward(**texts, labels=labels).result(timeout=LONG)
    assert result.loss == pytest.approx(expected.item(), abs=1e-5)
    for name, grad in gradients(plain).items():
        assert_close(gradients(model)[name], grad, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("precise", ["custom", "named"])
def test_passes_of_unequal_token_counts_equal_one_pass_over_the_whole_batch(precise):
    rows = [9, 2, 12, 4]
    whole = batch(*rows, seed=5)
    parts = [{k: v[i : i + 1, : rows[i]] for k, v in whole.items()} for i in range(4)]

    def train(batches):
        model = tiny()
        with pipeline_of(model, gradient_accumulation_steps=len(batches)) as pipeline:
            for texts in batches:
                if precise == "named":
                    pipeline.forward_backward(**texts)
                else:
                    pipeline.forward_backward_custom(**texts, custom_loss_fn=mean_nll)
            step = pipeline.optim_step(sgd(model, lr=1.0), max_grad_norm=None)
            return step.result(timeout=LONG), weights(model)

    (one, weights_one), (several, weights_several) = train([whole]), train(parts)
    assert one.num_tokens == several.num_tokens == sum(rows) - 4
    assert one.grad_norm == pytest.approx(several.grad_norm, rel=1e-5)
    assert distance(weights(tiny()), weights_one) > 1e-2
    assert distance(weights_one, weights_several) < 1e-6


def test_policy_losses_of_unequal_passes_equal_one_pass_over_the_whole_batch():
    rows = [9, 2, 12]
    whole = batch(*rows, seed=6)
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(3, 12, generator=generator)
    old = torch.randn(3, 12, generator=generator) * 0.2 - 5.5

    def train(indices):
        model = tiny()
        with pipeline_of(model, gradient_accumulation_steps=len(indices)) as pipeline:
            for index in indices:
                pipeline.forward_backward(
                    whole["input_ids"][index],
                    whole["attention_mask"][index],
                    loss_fn="ppo",
                    old_log_probs=old[index],
                    advantages=advantages[index],
                    entropy_coef=0.1,
                )
            pipeline.optim_step(sgd(model, lr=1.0), max_grad_norm=None).result(timeout=LONG)
        return weights(model)

    one, several = train([slice(None)]), train([slice(0, 1), slice(1, 2), slice(2, 3)])
    assert distance(weights(tiny()), one) > 1e-2
    assert distance(one, several) < 1e-6


def test_num_tokens_says_how_much_a_custom_pass_weighs():
    def train(counts):
        model = tiny()
        with pipeline_of(model, gradient_accumulation_steps=2) as pipeline:
            for texts, count in zip([batch(6, seed=1), batch(6, seed=2)], counts, strict=True):
                pipeline.forward_backward_custom(**texts, custom_loss_fn=mean_nll, num_tokens=count)
            pipeline.optim_step(sgd(model, lr=1.0), max_grad_norm=None).result(timeout=LONG)
        return weights(model)

    start, first, second = weights(tiny()), train([10**9, 1]), train([1, 10**9])
    expected = {name: (first[name] + second[name] * 3) / 4 for name in start}
    assert distance(first, second) > 1e-2
    assert distance(train([1, 3]), expected) < 1e-6


def test_only_adapters_are_trained_of_a_lora_model():
    model = load_model(ModelConfig(name="random:tiny", lora=LoraConfig(r=4)))
    before = weights(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    with pipeline_of(model) as pipeline:
        for _ in range(2):
            pipeline.forward_backward(**BATCHES[0])
            pipeline.optim_step(optimizer).result(timeout=LONG)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in changed) and changed


# ----------------------------------------------------------------------- the window


def test_a_step_before_the_window_is_full_is_refused_each_time_and_steps_nothing():
    model = tiny()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    with pipeline_of(model, max_workers=2, gradient_accumulation_steps=2) as pipeline:
        for _ in range(20):
            before, count = weights(model), len(optimizer.state_dict()["state"])
            rate = scheduler.get_last_lr()
            futures = [
                pipeline.forward_backward(**BATCHES[0]),
                pipeline.optim_step(optimizer, scheduler),
            ]
            futures[0].result(timeout=LONG)
            with pytest.raises(RuntimeError, match="gradient_accumulation_steps"):
                futures[1].result(timeout=LONG)
            assert same(before, weights(model))
            assert len(optimizer.state_dict()["state"]) == count
            assert scheduler.get_last_lr() == rate
            second = pipeline.forward_backward(**BATCHES[1])
            step = pipeline.optim_step(optimizer, scheduler)
            second.result(timeout=LONG)
            step.result(timeout=LONG)
            assert not same(before, weights(model))
    assert scheduler.last_epoch == 20


def test_a_step_without_any_pass_is_refused_each_time():
    model = tiny()
    optimizer = adamw(model)
    before = everything(model, optimizer)
    with pipeline_of(model) as pipeline:
        for _ in range(20):
            assert isinstance(error_of(lambda: pipeline.optim_step(optimizer)), RuntimeError)
        assert same(before, everything(model, optimizer))
        pipeline.forward_backward(**BATCHES[0])
        assert pipeline.optim_step(optimizer).result(timeout=LONG).step == 1
        assert isinstance(error_of(lambda: pipeline.optim_step(optimizer)), RuntimeError)


@pytest.mark.parametrize("steps", [1, 3])
def test_more_passes_than_the_window_are_refused_and_do_not_count(steps):
    def train(extra):
        model = tiny()
        with pipeline_of(model, gradient_accumulation_steps=steps) as pipeline:
            for texts in BATCHES[:steps]:
                pipeline.forward_backward(**texts).result(timeout=LONG)
            before = gradients(model)
            for _ in range(extra):
                refused = pipeline.forward_backward(**BATCHES[3])
                custom = pipeline.forward_backward_custom(**BATCHES[3], custom_loss_fn=mean_nll)
                for future in (refused, custom):
                    with pytest.raises(RuntimeError, match="gradient_accumulation_steps"):
                        future.result(timeout=LONG)
            assert same(before, gradients(model))
            pipeline.optim_step(sgd(model)).result(timeout=LONG)
        return weights(model)

    assert same(train(0), train(2))


@pytest.mark.parametrize("steps", [0, -1])
def test_a_window_of_no_passes_is_refused(steps):
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        pipeline_of(gradient_accumulation_steps=steps)


# ----------------------------------------------------------------------- a client's own optimizer


def test_a_client_makes_its_optimizer_and_scheduler_and_steps_both():
    def run(own):
        model = tiny()
        if own:
            options = {
                "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2),
                "scheduler": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 / (1 + s)),
            }
            client, arguments = client_of(model, **options), {}
        else:
            client = client_of(model)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 1 / (1 + s))
            arguments = {"optimizer": optimizer, "scheduler": scheduler}
        rates = []
        with client:
            for seed in range(3):
                client.forward_backward(batch(5, 3, seed=seed))
                step = client.optim_step(**arguments, max_grad_norm=1.0)
                rates.append(step.result(timeout=LONG).learning_rate)
        return rates, weights(model)

    (rates, one), (others, other) = run(True), run(False)
    assert rates == others == [pytest.approx(1e-2 / n) for n in (1, 2, 3)]
    assert same(one, other)


def test_a_step_without_any_optimizer_is_a_clear_error():
    with client_of() as client:
        client.forward_backward(batch(5)).result(timeout=LONG)
        with pytest.raises((ValueError, TypeError), match="optimizer"):
            client.optim_step().result(timeout=LONG)


def test_an_optimizer_of_another_model_is_refused():
    model = tiny()
    with pipeline_of(model) as pipeline:
        pipeline.forward_backward(**batch(5)).result(timeout=LONG)
        before = gradients(model)
        with pytest.raises(ValueError, match="parameters"):
            pipeline.optim_step(sgd(tiny())).result(timeout=LONG)
        assert same(before, gradients(model))
        pipeline.optim_step(sgd(model)).result(timeout=LONG)


def test_a_model_that_is_no_language_model_is_refused():
    with pytest.raises(ValueError, match="Linear is no causal language model"):
        pipeline_of(torch.nn.Linear(2, 2))
