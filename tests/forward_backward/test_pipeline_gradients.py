"""Gradients and steps: bit for bit a plain loop, all or nothing, never skipped in silence."""

import copy

import pytest
import torch
from pipeline_helpers import (
    LONG,
    Gate,
    adamw,
    batch,
    critic,
    distance,
    error_of,
    everything,
    gradients,
    mean_nll,
    pipeline_of,
    predicted,
    same,
    sgd,
    tiny,
    weights,
)
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from rlmodules.forward_backward import NonFiniteLossError
from rlmodules.forward_backward.tokens import tokens_of
from rlmodules.models import LoraConfig, ModelConfig, PolicyModel, load_model

OPTIMIZERS = {"sgd": sgd, "adamw": adamw}
BATCHES = [batch(9, 4, seed=1), batch(3, seed=2), batch(12, 2, 7, seed=3), batch(5, 5, seed=4)]


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


# ----------------------------------------------------------------------- failures


def raises(model, inputs, outputs):
    raise LookupError("my own mistake")


def raises_after_backward(model, inputs, outputs):
    outputs.logits.mean().backward()
    raise LookupError("my own mistake")


def says_nan(model, inputs, outputs):
    return outputs.logits.mean() * float("nan")


def says_nan_with_a_finite_gradient(model, inputs, outputs):
    return outputs.logits.mean() + float("nan")


def says_infinity(model, inputs, outputs):
    return outputs.logits.mean() * float("inf")


def has_a_nan_gradient(model, inputs, outputs):
    return (outputs.logits.mean() * 0).abs().sqrt()


def says_a_vector(model, inputs, outputs):
    return outputs.logits.mean(-1).mean(-1)


def says_a_float(model, inputs, outputs):
    return outputs.logits.mean().item()


def says_nothing(model, inputs, outputs):
    return None


def has_no_gradient(model, inputs, outputs):
    return outputs.logits.detach().mean()


def reaches_no_weight(model, inputs, outputs):
    return torch.zeros((), requires_grad=True) * 2


CUSTOM = {
    raises: LookupError,
    raises_after_backward: LookupError,
    says_nan: NonFiniteLossError,
    says_nan_with_a_finite_gradient: NonFiniteLossError,
    says_infinity: NonFiniteLossError,
    has_a_nan_gradient: NonFiniteLossError,
    says_a_vector: ValueError,
    says_a_float: TypeError,
    says_nothing: TypeError,
    has_no_gradient: ValueError,
    reaches_no_weight: RuntimeError,
}


def policy_loss(**changes):
    texts = batch(6, 4)
    arguments = {"old_logprobs": torch.full((2, 6), -5.5), "advantages": torch.ones(2, 6)}
    return {**texts, "loss_fn": "importance_sampling", **arguments, **changes}


NAMED = {
    "bad attention_mask": {**batch(6, 4), "attention_mask": torch.ones(2, 5)},
    "bad labels": {**batch(6, 4), "labels": torch.ones(3, 6).long()},
    "bad mask": {**batch(6, 4), "mask": torch.ones(6)},
    "bad input_ids": {"input_ids": torch.ones(1, 2, 3).long()},
    "unknown token": {"input_ids": torch.tensor([[5, 6, 100_000]])},
    "unknown label": {"input_ids": torch.tensor([[5, 6]]), "labels": torch.tensor([[5, 900]])},
    "no text": {**batch(6, 4), "attention_mask": torch.zeros(2, 6)},
    "nothing to predict": {"input_ids": torch.tensor([[5]])},
    "nothing but ignored labels": {**batch(6), "labels": torch.full((1, 6), -100)},
    "bad advantages": policy_loss(advantages=torch.ones(2, 4)),
    "infinite advantages": policy_loss(advantages=torch.tensor([1.0, float("inf")])),
    "nan advantages": policy_loss(advantages=torch.full((2, 6), float("nan"))),
    "infinite ratio": policy_loss(old_logprobs=torch.full((2, 6), -1e4)),
}


def failing(name):
    """A call that queues it."""
    if name in NAMED:
        return lambda pipeline: pipeline.forward_backward(**NAMED[name])
    return lambda pipeline: pipeline.forward_backward_custom(**batch(6, 4), custom_loss_fn=name)


every_failure = pytest.mark.parametrize(
    "name", [*NAMED, *CUSTOM], ids=lambda name: getattr(name, "__name__", name)
)


@every_failure
def test_a_pass_that_fails_leaves_everything_as_it_was_and_the_next_one_works(name):
    def train(fails):
        model = tiny()
        optimizer = adamw(model)
        with pipeline_of(model) as pipeline:
            for texts in BATCHES[:2]:
                before = everything(model, optimizer)
                if fails:
                    error = error_of(lambda: failing(name)(pipeline))
                    assert isinstance(error, CUSTOM.get(name, Exception)), repr(error)
                    assert same(before, everything(model, optimizer))
                    assert isinstance(
                        error_of(lambda: pipeline.optim_step(optimizer)), RuntimeError
                    )
                    assert same(before, everything(model, optimizer))
                pipeline.forward_backward(**texts).result(timeout=LONG)
                pipeline.optim_step(optimizer).result(timeout=LONG)
        return everything(model, optimizer)

    assert same(train(False), train(True))


@every_failure
def test_a_failure_in_the_middle_of_a_window_keeps_the_gradients_of_the_passes_before_it(name):
    def train(fails):
        model = tiny()
        optimizer = adamw(model)
        with pipeline_of(model, gradient_accumulation_steps=2) as pipeline:
            pipeline.forward_backward(**BATCHES[0]).result(timeout=LONG)
            before = everything(model, optimizer)
            assert any(grad is not None and bool(grad.any()) for grad in before[1].values())
            if fails:
                assert error_of(lambda: failing(name)(pipeline)) is not None
                assert same(before, everything(model, optimizer))
            pipeline.forward_backward(**BATCHES[1]).result(timeout=LONG)
            step = pipeline.optim_step(optimizer).result(timeout=LONG)
        return everything(model, optimizer), step

    (one, step), (other, other_step) = train(False), train(True)
    assert step == other_step and same(one, other)


def test_operations_queued_behind_one_that_fails_are_done():
    model = tiny()
    optimizer = sgd(model)
    with pipeline_of(model) as pipeline:
        with Gate(pipeline):
            first = pipeline.optim_step(optimizer)
            failed = pipeline.forward_backward_custom(**batch(4), custom_loss_fn=raises)
            refused = pipeline.optim_step(optimizer)
            works = pipeline.forward_backward(**batch(4))
            last = pipeline.optim_step(optimizer)
        assert first.result(timeout=LONG).step == 1
        assert isinstance(failed.exception(timeout=LONG), LookupError)
        assert isinstance(refused.exception(timeout=LONG), RuntimeError)
        assert works.result(timeout=LONG).loss > 0
        assert last.result(timeout=LONG).step == 2


def test_what_a_failed_loss_did_to_the_old_gradients_is_undone():
    """A custom loss sees the model: clearing or scaling its gradients must not outlive failure."""

    def clears(model, inputs, outputs):
        for p in model.parameters():
            p.grad = torch.full_like(p, 7)
        raise LookupError("my own mistake")

    model = tiny()
    with pipeline_of(model, gradient_accumulation_steps=2) as pipeline:
        pipeline.forward_backward(**BATCHES[0]).result(timeout=LONG)
        before = everything(model)
        future = pipeline.forward_backward_custom(**BATCHES[1], custom_loss_fn=clears)
        assert isinstance(future.exception(timeout=LONG), LookupError)
        assert same(before, everything(model))


def test_a_step_whose_optimizer_fails_can_be_taken_again_with_the_same_result():
    class Flaky(torch.optim.SGD):
        fails = True

        def step(self, closure=None):
            if self.fails:
                raise LookupError("out of memory, say")
            return super().step(closure)

    def train(fails):
        model = tiny()
        optimizer = Flaky(model.parameters(), lr=1.0)
        with pipeline_of(model, gradient_accumulation_steps=2) as pipeline:
            for texts in BATCHES[:2]:
                pipeline.forward_backward(**texts).result(timeout=LONG)
            before = weights(model)
            if fails:
                error = error_of(lambda: pipeline.optim_step(optimizer, max_grad_norm=None))
                assert isinstance(error, LookupError)
                assert same(before, weights(model))
            optimizer.fails = False
            step = pipeline.optim_step(optimizer, max_grad_norm=None).result(timeout=LONG)
        return weights(model), step

    (one, step), (other, again) = train(False), train(True)
    assert step == again and same(one, other)


# ----------------------------------------------------------------------- losses


def arithmetic(texts, *, temperature=1.0, model=None):
    """Of the tokens that count, from transformers' logits: log-probabilities and entropy [N]."""
    with torch.no_grad():
        logits = (model or tiny())(**texts).logits.double() / temperature
    log_p = torch.zeros_like(logits)
    log_p[:, 1:] = logits[:, :-1].log_softmax(-1)
    mask = predicted(texts)
    entropy = -(log_p.exp() * log_p).sum(-1)[mask]
    return log_p.gather(-1, texts["input_ids"][..., None]).squeeze(-1)[mask], entropy


def random_arguments(texts):
    """Old log-probabilities near the model's, and advantages; [B, T]."""
    generator = torch.Generator().manual_seed(9)
    shape = texts["input_ids"].shape
    old = torch.zeros(shape)
    old[predicted(texts)] = arithmetic(texts)[0].float()
    old = old + 0.4 * torch.randn(shape, generator=generator)
    return old, torch.randn(shape, generator=generator)


def test_cross_entropy_is_minus_the_mean_logprob():
    texts = batch(9, 4)
    with pipeline_of() as pipeline:
        result = pipeline.forward_backward(**texts).result(timeout=LONG)
    logprobs, _ = arithmetic(texts)
    assert result.loss == pytest.approx(-logprobs.mean().item(), abs=1e-5)
    assert result.num_tokens == 11
    assert result.metrics["perplexity"] == pytest.approx((-logprobs.mean()).exp().item(), rel=1e-4)
    assert result.logits is None
    assert result.logprobs.shape == (2, 9) and result.logprobs.device.type == "cpu"
    assert not result.logprobs.requires_grad
    assert_close(result.logprobs[predicted(texts)].double(), logprobs, atol=1e-5, rtol=0)
    assert not result.logprobs[~predicted(texts)].any()


def test_logits_come_when_they_are_asked_for():
    texts = batch(9, 4)
    model = tiny()
    with torch.no_grad():
        expected = model(**texts).logits
    with pipeline_of(model) as pipeline:
        trained = pipeline.forward_backward(**texts, return_logits=True).result(timeout=LONG)
        asked = pipeline.forward(**texts, return_logits=True).result(timeout=LONG)
        assert pipeline.forward(**texts).result(timeout=LONG).logits is None
    real = texts["attention_mask"].bool()
    for result in (trained, asked):
        assert result.logits.shape == expected.shape and result.logits.device.type == "cpu"
        assert not result.logits.requires_grad
        assert_close(result.logits[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_importance_sampling_is_what_one_computes_by_hand(temperature):
    texts = batch(9, 4)
    old, advantages = random_arguments(texts)
    mask = predicted(texts)
    with pipeline_of() as pipeline:
        future = pipeline.forward_backward(
            **texts,
            loss_fn="importance_sampling",
            old_logprobs=old,
            advantages=advantages,
            temperature=temperature,
        )
        result = future.result(timeout=LONG)
    logprobs, _ = arithmetic(texts, temperature=temperature)
    ratio = (logprobs - old[mask]).exp()
    assert result.loss == pytest.approx(-(ratio * advantages[mask]).mean().item(), abs=1e-5)


def test_the_gradient_of_importance_sampling_is_that_of_its_formula():
    texts = batch(9, 4)
    old, advantages = random_arguments(texts)
    mask, model = predicted(texts), tiny()
    plain = copy.deepcopy(model)
    logits = plain(**texts).logits[:, :-1].log_softmax(-1)
    logprobs = logits.gather(-1, texts["input_ids"][:, 1:, None]).squeeze(-1)[mask[:, 1:]]
    (-((logprobs - old[mask]).exp() * advantages[mask]).mean()).backward()
    with pipeline_of(model) as pipeline:
        pipeline.forward_backward(
            **texts, loss_fn="importance_sampling", old_logprobs=old, advantages=advantages
        ).result(timeout=LONG)
    for name, grad in gradients(plain).items():
        assert_close(gradients(model)[name], grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("settings", [{}, {"clip_ratio": 0.05}, {"entropy_coef": 0.3}], ids=str)
def test_ppo_is_what_one_computes_by_hand(settings):
    texts = batch(9, 4)
    old, advantages = random_arguments(texts)
    mask = predicted(texts)
    with pipeline_of() as pipeline:
        future = pipeline.forward_backward(
            **texts, loss_fn="ppo", old_log_probs=old, advantages=advantages, **settings
        )
        result = future.result(timeout=LONG)
    logprobs, entropy = arithmetic(texts)
    clip, ratio, gain = settings.get("clip_ratio", 0.2), logprobs - old[mask], advantages[mask]
    ratio = ratio.exp()
    expected = -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()
    expected = expected - settings.get("entropy_coef", 0.0) * entropy.mean()
    assert result.loss == pytest.approx(expected.item(), abs=1e-5)
    clipped = (ratio.clamp(1 - clip, 1 + clip) * gain < ratio * gain).double().mean().item()
    assert 0 < clipped < 1
    assert result.metrics["clip_fraction"] == pytest.approx(clipped, abs=1e-6)


@pytest.mark.parametrize("name", ["values", "old_values"])
@pytest.mark.parametrize("settings", [{}, {"value_clip": 0.01, "value_coef": 2.0}], ids=str)
def test_ppo_with_a_critic_is_what_one_computes_by_hand(name, settings):
    texts = batch(9, 4)
    old, advantages = random_arguments(texts)
    mask, model = predicted(texts), critic()
    before = copy.deepcopy(model.value_head.state_dict())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        _, values = model(texts["input_ids"])
    expects = torch.zeros_like(values)
    expects[:, 1:] = values[:, :-1]  # the critic speaks before the token
    old_values = expects + 0.3 * torch.randn(values.shape, generator=generator)
    returns = torch.randn(values.shape, generator=generator)
    arguments = {"old_log_probs": old, "advantages": advantages, "returns": returns}
    with pipeline_of(model) as pipeline:
        seen = pipeline.forward(**texts).result(timeout=LONG).values
        assert_close(seen[mask], expects[mask], atol=1e-5, rtol=1e-5)
        result = pipeline.forward_backward(
            **texts, loss_fn="ppo", **arguments, **{name: old_values}, **settings
        ).result(timeout=LONG)
        pipeline.optim_step(sgd(model)).result(timeout=LONG)
    ratio = (arithmetic(texts)[0] - old[mask]).exp()
    policy = -torch.minimum(ratio * advantages[mask], ratio.clamp(0.8, 1.2) * advantages[mask])
    now, then, aim = expects[mask], old_values[mask], returns[mask]
    bound = settings.get("value_clip", 0.2)
    moved = then + (now - then).clamp(-bound, bound)
    value = 0.5 * torch.maximum((now - aim) ** 2, (moved - aim) ** 2).mean()
    expected = policy.mean().item() + settings.get("value_coef", 0.5) * value.item()
    assert result.loss == pytest.approx(expected, abs=1e-5)
    assert any(not torch.equal(before[k], v) for k, v in model.value_head.state_dict().items())


def test_tensors_may_have_a_column_a_token_or_one_less_or_be_of_whole_texts():
    texts = batch(9, 4)
    old, advantages = random_arguments(texts)
    whole = torch.tensor([0.5, -2.0])

    def loss(**arguments):
        with pipeline_of() as pipeline:
            future = pipeline.forward_backward(**texts, loss_fn="importance_sampling", **arguments)
            return future.result(timeout=LONG).loss

    full = loss(old_logprobs=old, advantages=advantages)
    assert loss(old_logprobs=old[:, 1:], advantages=advantages[:, 1:]) == full
    assert loss(old_logprobs=old.tolist(), advantages=advantages.numpy()) == full
    spread = whole[:, None].expand(2, 9)
    assert loss(old_logprobs=old, advantages=whole) == loss(old_logprobs=old, advantages=spread)
    ratio = (arithmetic(texts)[0] - old[predicted(texts)]).exp()
    expected = -(ratio * spread[predicted(texts)]).mean().item()
    assert loss(old_logprobs=old, advantages=whole) == pytest.approx(expected, abs=1e-5)


def test_what_stands_at_tokens_that_do_not_count_changes_nothing():
    texts = batch(9, 4)
    old, advantages = random_arguments(texts)
    mask = texts["attention_mask"].clone()
    mask[:, :3] = 0

    def run(**arguments):
        model = tiny()
        with pipeline_of(model) as pipeline:
            future = pipeline.forward_backward(
                **texts, mask=mask, loss_fn="importance_sampling", **arguments
            )
            return future.result(timeout=LONG), gradients(model)

    one, gradients_one = run(old_logprobs=old, advantages=advantages)
    nan = float("nan")
    other, gradients_other = run(
        old_logprobs=old.masked_fill(mask == 0, nan),
        advantages=advantages.masked_fill(mask == 0, nan),
    )
    assert one.loss == other.loss and one.num_tokens == other.num_tokens == 7
    assert same(gradients_one, gradients_other)
    assert not one.logprobs[mask == 0].any()


def test_labels_of_minus_100_and_a_mask_of_0_leave_out_the_same_tokens():
    texts = batch(9, 4)
    mask = texts["attention_mask"].clone()
    mask[0, :5] = 0
    labels = texts["input_ids"].masked_fill(mask == 0, -100)
    counted = mask.bool()
    counted[1, 0] = False

    def run(**arguments):
        model = tiny()
        with pipeline_of(model) as pipeline:
            result = pipeline.forward_backward(**texts, **arguments).result(timeout=LONG)
        return result, gradients(model)

    (by_label, one), (by_mask, other) = run(labels=labels), run(mask=mask)
    assert by_label.loss == by_mask.loss and same(one, other)
    logprobs = torch.zeros(2, 9, dtype=torch.double)
    logprobs[predicted(texts)] = arithmetic(texts)[0]
    assert by_label.loss == pytest.approx(-logprobs[counted].mean().item(), abs=1e-5)
    assert by_label.num_tokens == int(counted.sum())


def test_labels_may_be_other_tokens_than_the_inputs():
    texts = batch(5, 5)
    labels = batch(5, 5, seed=8)["input_ids"]
    model = tiny()
    with torch.no_grad():
        logits = model(**texts).logits
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    with pipeline_of(model) as pipeline:
        result = pipeline.forward_backward(**texts, labels=labels).result(timeout=LONG)
    assert result.loss == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 3, 40])
def test_the_side_and_amount_of_padding_change_nothing(side, extra):
    def run(**layout):
        texts = batch(9, 4, seed=3, **layout)
        generator = torch.Generator().manual_seed(4)
        old, advantages = torch.zeros(2, *texts["input_ids"].shape)
        real = texts["attention_mask"].bool()
        old[real] = torch.randn(13, generator=generator) * 0.2 - 5.5
        advantages[real] = torch.randn(13, generator=generator)
        model = tiny()
        with pipeline_of(model) as pipeline:
            result = pipeline.forward_backward(
                **texts, loss_fn="importance_sampling", old_logprobs=old, advantages=advantages
            ).result(timeout=LONG)
            seen = pipeline.forward(**texts).result(timeout=LONG)
        assert_close(seen.logprobs, result.logprobs, atol=1e-6, rtol=0)
        assert torch.equal(seen.mask, predicted(texts))
        return result.loss, result.logprobs[predicted(texts)], gradients(model)

    loss, logprobs, grads = run(side="right", extra=0)
    padded_loss, padded, padded_grads = run(side=side, extra=extra)
    assert padded_loss == pytest.approx(loss, abs=1e-6)
    assert_close(padded, logprobs, atol=1e-6, rtol=0)
    assert distance(grads, padded_grads) < 1e-6


def last_token_logit(model, inputs, outputs):
    """A custom loss that reads left-padded batches: what follows their last column."""
    logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    return -logits[:, -1].log_softmax(-1)[:, 7].mean()


def with_absolute_positions():
    torch.manual_seed(5)
    sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=259, **sizes)).eval()
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(50)
    return model


@pytest.mark.parametrize("make", [tiny, with_absolute_positions])
def test_a_custom_loss_sees_a_left_padded_text_as_if_it_were_alone(make):
    whole = batch(9, 4, side="left")
    alone = [{k: v[i : i + 1, start:] for k, v in whole.items()} for i, start in ((0, 0), (1, 5))]

    def loss(texts):
        with pipeline_of(make()) as pipeline:
            future = pipeline.forward_backward_custom(**texts, custom_loss_fn=last_token_logit)
            return future.result(timeout=LONG).loss

    assert loss(whole) == pytest.approx(sum(map(loss, alone)) / 2, abs=1e-5)


def test_a_custom_loss_of_a_model_with_a_critic_takes_left_padding_too():
    def loss(model, texts):
        with pipeline_of(model) as pipeline:
            future = pipeline.forward_backward_custom(**texts, custom_loss_fn=last_token_logit)
            return future.result(timeout=LONG).loss

    left = batch(9, 4, side="left")
    assert loss(critic(), batch(9, 9)) == pytest.approx(loss(tiny(), batch(9, 9)), abs=1e-5)
    assert loss(critic(), left) == pytest.approx(loss(tiny(), left), abs=1e-5)


def test_a_custom_loss_of_a_model_with_a_critic_sees_outputs_with_logits():
    model = critic()
    with pipeline_of(model) as pipeline:
        future = pipeline.forward_backward_custom(**batch(9, 4), custom_loss_fn=mean_nll)
        loss = future.result(timeout=LONG).loss
    logprobs, _ = arithmetic(batch(9, 4))
    assert loss == pytest.approx(-logprobs.mean().item(), abs=1e-5)


def test_a_custom_loss_that_is_cross_entropy_has_its_value_and_gradient():
    one, other, texts = tiny(), tiny(), batch(9, 4)
    with pipeline_of(one) as pipeline:
        named = pipeline.forward_backward(**texts).result(timeout=LONG)
    with pipeline_of(other) as pipeline:
        custom = pipeline.forward_backward_custom(**texts, custom_loss_fn=mean_nll)
        custom = custom.result(timeout=LONG)
    assert custom.loss == pytest.approx(named.loss, abs=1e-5)
    assert custom.num_tokens == named.num_tokens
    assert distance(gradients(one), gradients(other)) < 1e-5


def test_texts_may_come_as_lists_of_any_lengths():
    texts = batch(9, 4)
    rows = [texts["input_ids"][0].tolist(), texts["input_ids"][1, :4].tolist()]
    with pipeline_of() as pipeline:
        ragged = pipeline.forward(rows).result(timeout=LONG)
        padded = pipeline.forward(**texts).result(timeout=LONG)
        one = pipeline.forward(texts["input_ids"][0]).result(timeout=LONG)
    assert torch.equal(ragged.logprobs, padded.logprobs)
    assert_close(one.logprobs[0], padded.logprobs[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"loss_fn": "cross_entrpy"}, "cross_entrpy"),
        ({"loss_fn": "cross_entropy", "advantages": torch.ones(2)}, "advantages"),
        ({"loss_fn": "importance_sampling", "advantages": torch.ones(2)}, "old_logprobs"),
        ({"loss_fn": "importance_sampling", "old_logprobs": torch.ones(2)}, "advantages"),
        ({"loss_fn": "ppo", "advantages": torch.ones(2)}, "old_log_probs"),
        ({"loss_fn": "ppo", "old_log_probs": torch.ones(2)}, "advantages"),
        (
            {
                "loss_fn": "ppo",
                "old_log_probs": torch.ones(2),
                "advantages": torch.ones(2),
                "clip_rato": 0.1,
            },
            "clip_rato",
        ),
        (
            {
                "loss_fn": "ppo",
                "old_log_probs": torch.ones(2),
                "advantages": torch.ones(2),
                "returns": torch.ones(2),
            },
            "values",
        ),
        (
            {
                "loss_fn": "ppo",
                "old_log_probs": torch.ones(2),
                "advantages": torch.ones(2),
                "values": torch.ones(2),
            },
            "returns",
        ),
        (
            {
                "loss_fn": "ppo",
                "old_log_probs": torch.ones(2),
                "advantages": torch.ones(2),
                "values": torch.ones(2),
                "returns": torch.ones(2),
            },
            "PPOModel",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_unknown_loss_or_argument_or_a_missing_one_is_an_error_that_names_it(arguments, named):
    with pipeline_of() as pipeline:
        error = error_of(lambda: pipeline.forward_backward(**batch(6, 4), **arguments))
        assert isinstance(error, ValueError) and named in str(error)
        pipeline.forward_backward(**batch(6, 4)).result(timeout=LONG)
