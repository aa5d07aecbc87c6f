"""What a pass or a step that fails leaves behind: nothing."""

import pytest
import torch
from pipeline_helpers import (
    BATCHES,
    LONG,
    Gate,
    adamw,
    batch,
    error_of,
    everything,
    pipeline_of,
    same,
    sgd,
    tiny,
    weights,
)

from rlmodules.forward_backward import NonFiniteLossError


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
