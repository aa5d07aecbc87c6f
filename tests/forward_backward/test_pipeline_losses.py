"""Named and custom losses: what one computes by hand, whatever the padding."""

import copy

import pytest
import torch
from pipeline_helpers import (
    LONG,
    batch,
    critic,
    distance,
    error_of,
    gradients,
    mean_nll,
    pipeline_of,
    predicted,
    same,
    sgd,
    tiny,
)
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel


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
