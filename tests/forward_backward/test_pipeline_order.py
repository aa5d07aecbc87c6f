"""Futures, the order of operations, and what overlaps."""

import threading
import time
import traceback
from concurrent.futures import Future

import pytest
import torch
from pipeline_helpers import (
    LONG,
    Gate,
    batch,
    client_of,
    everything,
    mean_nll,
    pipeline_of,
    same,
    sgd,
    tiny,
    weights,
)
from torch.testing import assert_close

# ----------------------------------------------------------------------- the documented loop


def test_the_documented_snippets_run_as_they_are_written(tmp_path, monkeypatch, tokenizer):
    from rlmodules.forward_backward import AsyncTrainingClient, ForwardBackwardPipeline

    monkeypatch.chdir(tmp_path)
    model, seen = tiny(), []
    texts = batch(6, 4)
    input_ids, attention_mask = texts["input_ids"], texts["attention_mask"]
    labels = input_ids.masked_fill(attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    pipeline = ForwardBackwardPipeline(
        model=model,
        device="cpu",
        max_workers=2,
        gradient_accumulation_steps=4,
    )
    for _ in range(3):
        future = pipeline.forward_backward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=labels,
            loss_fn="cross_entropy",
        )
        result = future.result(timeout=LONG)
        assert isinstance(result.loss, float) and 5 < result.loss < 6

    def custom_loss_fn(model, inputs, outputs, **kwargs):
        seen.append((model, kwargs))
        logits = outputs.logits
        return logits.float().logsumexp(-1).mean()

    future = pipeline.forward_backward_custom(
        input_ids=input_ids,
        custom_loss_fn=custom_loss_fn,
        attention_mask=attention_mask,
        my_param=42,
    )
    assert future.result(timeout=LONG).loss > 0
    assert seen == [(model, {"my_param": 42})]
    optim_future = pipeline.optim_step(
        optimizer=optimizer,
        scheduler=scheduler,
        max_grad_norm=1.0,
    )
    optim_result = optim_future.result(timeout=LONG)
    assert optim_result.step == 1 and optim_result.grad_norm > 0
    assert optim_result.learning_rate == pytest.approx(1e-3)
    assert scheduler.get_last_lr() == [pytest.approx(5e-4)]

    checkpoint_info = pipeline.save_state("checkpoint_1000")
    assert {"path", "model_path", "optimizer_path", "state_path"} <= checkpoint_info.keys()
    saved = weights(model)
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    pipeline.load_state("checkpoints/checkpoint_1000")
    assert same(saved, weights(model))

    prompt_tokens = [5, 6, 7]
    samples = pipeline.sample(
        prompt=prompt_tokens,
        max_tokens=100,
        temperature=0.7,
        top_k=50,
        top_p=0.9,
        stop=[tokenizer.eos_token_id],
    )
    assert samples["prompt"] == [5, 6, 7]
    assert 1 <= len(samples["tokens"]) <= 100
    assert len(samples["logprobs"]) == len(samples["tokens"])
    pipeline.shutdown()

    model, reference_model = tiny(), tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    client = AsyncTrainingClient(
        model=model,
        reference_model=reference_model,
        device="cpu",
        gradient_accumulation_steps=4,
    )
    for _ in range(4):
        fwd_future = client.forward_backward(texts, loss_fn="cross_entropy")
    optim_future = client.optim_step(optimizer, max_grad_norm=1.0)
    ref_future = client.forward(texts, use_reference=True)
    client.shutdown()
    assert fwd_future.done() and optim_future.done() and ref_future.done()
    assert optim_future.result(timeout=LONG).step == 1
    assert ref_future.result(timeout=LONG).logprobs.shape == input_ids.shape


# ----------------------------------------------------------------------- futures


def test_every_call_returns_a_future_at_once_while_the_model_is_busy(tmp_path):
    model = tiny()
    client = client_of(model, tiny(), checkpoint_dir=tmp_path)
    optimizer, texts = sgd(model), batch(5)
    with client, Gate(client) as gate:
        futures = [
            client.optim_step(optimizer),
            client.forward_backward(texts),
            client.optim_step(optimizer),
            client.forward_backward_custom(texts, mean_nll),
            client.forward(texts),
            client.forward(texts, use_reference=True),
            client.sample([5, 6], max_tokens=2),
            client.save_state("a"),
            client.pipeline.sample([5, 6], max_tokens=2, wait=False),
        ]
        assert not gate.future.done()
        assert all(isinstance(future, Future) for future in futures)
        assert not any(future.done() for future in [*futures[:5], *futures[6:]])
        with pytest.raises(TimeoutError):
            futures[1].result(timeout=0.01)
        gate.open()
        for future in futures:
            future.result(timeout=LONG)
            assert future.done()


def test_an_exception_comes_with_the_traceback_of_where_it_arose():
    def a_function_that_fails(*_, **__):
        raise LookupError("the reason")

    with client_of() as client:
        for future in (
            client.forward_backward_custom(batch(4), a_function_that_fails),
            client.submit(a_function_that_fails),
        ):
            with pytest.raises(LookupError, match="the reason") as caught:
                future.result(timeout=LONG)
            names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert "a_function_that_fails" in names


def test_a_bad_batch_fails_in_the_result_and_not_in_the_call():
    with pipeline_of() as pipeline:
        future = pipeline.forward_backward(torch.ones(2, 5).long(), torch.ones(2, 4).long())
        with pytest.raises(ValueError, match="attention_mask"):
            future.result(timeout=LONG)
        future = pipeline.forward_backward([[5, 6, 7_000]])
        with pytest.raises(ValueError, match="7000"):
            future.result(timeout=LONG)


def test_what_is_cancelled_before_it_starts_does_not_run():
    model, ran = tiny(), []

    def loss(model, inputs, outputs, name):
        ran.append(name)
        return mean_nll(model, inputs, outputs)

    with pipeline_of(model, gradient_accumulation_steps=3) as pipeline:
        with Gate(pipeline) as gate:
            futures = [
                pipeline.forward_backward_custom(**batch(4), custom_loss_fn=loss, name=name)
                for name in "abc"
            ]
            sampled = pipeline.sample([5, 6], max_tokens=2, wait=False)
            assert futures[1].cancel() and sampled.cancel()
            assert futures[1].cancelled() and futures[1].done()
            assert not gate.future.cancel()
        for future in (gate.future, futures[0], futures[2]):
            future.result(timeout=LONG)
        assert ran == ["a", "c"]
        assert pipeline.optim_step(sgd(model)).result(timeout=LONG).step == 1


def test_a_cancelled_pass_does_not_count_for_the_step():
    model = tiny()
    optimizer = sgd(model)
    with pipeline_of(model, gradient_accumulation_steps=2) as pipeline:
        before = weights(model)
        with Gate(pipeline):
            cancelled = pipeline.forward_backward(**batch(4))
            step = pipeline.optim_step(optimizer)
            assert cancelled.cancel()
        with pytest.raises(RuntimeError):
            step.result(timeout=LONG)
        assert same(before, weights(model))
        pipeline.forward_backward(**batch(4)).result(timeout=LONG)
        assert pipeline.optim_step(optimizer).result(timeout=LONG).step == 1


# ----------------------------------------------------------------------- order


@pytest.mark.parametrize("max_workers", [1, 2, 8])
def test_operations_happen_in_the_order_queued(max_workers):
    happened = []

    def loss(model, inputs, outputs, number):
        if number % 7 == 0:
            time.sleep(0.005)
        happened.append(number)
        return mean_nll(model, inputs, outputs)

    with pipeline_of(max_workers=max_workers, gradient_accumulation_steps=40) as pipeline:
        futures = [
            pipeline.forward_backward_custom(
                # Large batches take longer to prepare, so that a free-for-all would mix them up.
                **batch(40 if number % 5 == 0 else 4),
                custom_loss_fn=loss,
                number=number,
            )
            for number in range(40)
        ]
        for future in futures:
            future.result(timeout=LONG)
    assert happened == list(range(40))


@pytest.mark.parametrize("max_workers", [1, 4])
def test_a_queued_loop_is_bit_for_bit_one_that_waits_for_each_operation(max_workers):
    batches = [batch(5, 9, seed=seed) for seed in range(6)]

    def run(wait):
        model = tiny()
        optimizer = sgd(model, lr=1.0)
        losses, futures = [], []
        with pipeline_of(model, max_workers=max_workers) as pipeline:
            for texts in batches:
                for future in (
                    pipeline.forward_backward(**texts),
                    pipeline.optim_step(optimizer),
                    pipeline.forward(**texts),
                ):
                    if wait:
                        future.result(timeout=LONG)
                    futures.append(future)
            for i in range(0, len(futures), 3):
                losses.append(futures[i].result(timeout=LONG).loss)
                losses.append(futures[i + 2].result(timeout=LONG).logprobs.sum().item())
        return losses, weights(model)

    (one, weights_one), (other, weights_other) = run(True), run(False)
    assert one == other and same(weights_one, weights_other)
    assert len(set(one)) == len(one)


def test_a_forward_queued_before_a_step_sees_the_old_weights_and_one_after_it_the_new():
    model, texts = tiny(), batch(7)
    with pipeline_of(model) as pipeline:
        first = pipeline.forward(**texts).result(timeout=LONG).logprobs
        with Gate(pipeline):
            before = pipeline.forward(**texts)
            pipeline.optim_step(sgd(model, lr=10.0))
            after = pipeline.forward(**texts)
        assert torch.equal(before.result(timeout=LONG).logprobs, first)
        assert (after.result(timeout=LONG).logprobs - first).abs().max() > 1e-3


def test_what_the_caller_writes_over_after_queueing_is_not_seen():
    texts = batch(6, 4)
    old = torch.full((2, 6), -5.5)
    advantages = torch.ones(2)
    with client_of(reference=tiny(), gradient_accumulation_steps=3) as client:
        expected = client.forward_backward(
            texts, "importance_sampling", old_logprobs=old, advantages=advantages
        ).result(timeout=LONG)
        reference = client.forward(texts, use_reference=True).result(timeout=LONG)
        with Gate(client):
            queued = client.forward_backward(
                texts, "importance_sampling", old_logprobs=old, advantages=advantages
            )
            from_reference = client.forward(texts, use_reference=True)
            for tensor in (*texts.values(), old, advantages):
                tensor.fill_(1)
        assert queued.result(timeout=LONG).loss == expected.loss
        assert torch.equal(from_reference.result(timeout=LONG).logprobs, reference.logprobs)


def test_a_prompt_that_the_caller_writes_over_after_queueing_is_not_seen():
    prompt, prompts = torch.tensor([5, 6, 7]), torch.tensor([[5, 6], [7, 8]])
    with client_of() as client:
        with Gate(client):
            one, two = client.sample(prompt, max_tokens=2), client.sample(prompts, max_tokens=2)
            prompt.fill_(1), prompts.fill_(1)
        assert one.result(timeout=LONG)["prompt"] == [5, 6, 7]
        assert two.result(timeout=LONG)["prompt"] == [[5, 6], [7, 8]]


# ----------------------------------------------------------------------- what overlaps


@pytest.mark.parametrize("max_workers", [1, 2])
def test_callbacks_run_while_the_model_is_busy(max_workers):
    with client_of(max_workers=max_workers) as client, Gate(client) as gate:
        future = client.submit(lambda a, *, b: a + b, 3, b=4)
        assert future.result(timeout=LONG) == 7
        assert not gate.future.done()


def test_reference_forwards_run_while_the_model_is_busy():
    texts = batch(5, 7)
    with client_of(reference=tiny()) as client, Gate(client) as gate:
        result = client.forward(texts, use_reference=True).result(timeout=LONG)
        assert not gate.future.done()
        gate.open()
        assert_close(result.logprobs, client.forward(texts).result(timeout=LONG).logprobs)


def test_callbacks_run_beside_each_other_as_many_as_there_are_workers():
    meeting = threading.Barrier(3)
    with client_of(max_workers=3) as client:
        futures = [client.submit(meeting.wait, LONG) for _ in range(3)]
        assert sorted(future.result(timeout=LONG) for future in futures) == [0, 1, 2]


def test_futures_may_be_given_as_arguments():
    texts = batch(6, 4)
    mask = texts["attention_mask"].clone()
    mask[:, :2] = 0
    with client_of(reference=tiny(), gradient_accumulation_steps=4) as client:
        reference = client.forward(texts, use_reference=True)
        advantages = client.submit(lambda result: result.logprobs / 5, reference)
        old = client.submit(lambda *, result: result.logprobs, result=reference)
        ids = client.submit(lambda: texts["input_ids"])
        masked = client.submit(lambda: mask)
        given = {**texts, "input_ids": ids, "mask": masked, "advantages": advantages}
        loss = client.forward_backward(given, "importance_sampling", old_logprobs=old)
        loss = loss.result(timeout=LONG).loss
        logprobs = reference.result(timeout=LONG).logprobs
        expected = -(logprobs / 5)[mask.bool()].mean().item()
        assert loss == pytest.approx(expected, rel=1e-5)

        seen = []

        def custom(model, inputs, outputs, scale, labels):
            seen.append((scale, labels))
            return mean_nll(model, inputs, outputs) * scale

        future = client.forward_backward_custom(
            {**texts, "labels": ids}, custom, scale=client.submit(lambda: 2.0)
        )
        twice = future.result(timeout=LONG).loss
        assert seen[0][0] == 2.0 and torch.equal(seen[0][1], texts["input_ids"])
        once = client.forward_backward(texts).result(timeout=LONG).loss
        assert twice == pytest.approx(2 * once, rel=1e-5)
        on_policy = client.forward({"input_ids": ids, "attention_mask": texts["attention_mask"]})
        assert_close(on_policy.result(timeout=LONG).logprobs, logprobs)
        onto_reference = client.forward({**texts, "input_ids": ids}, use_reference=True)
        assert_close(onto_reference.result(timeout=LONG).logprobs, logprobs)


def test_a_future_that_failed_fails_the_operation_that_was_given_it_and_no_other():
    def fail():
        raise LookupError("no reward")

    model, texts = tiny(), batch(6, 4)
    with client_of(model) as client:
        before = everything(model)
        failed = client.submit(fail)
        futures = [
            client.forward_backward({**texts, "labels": failed}),
            client.forward_backward(
                texts, "importance_sampling", old_logprobs=failed, advantages=torch.ones(2)
            ),
            client.forward_backward_custom(texts, mean_nll, reward=failed),
            client.submit(print, failed),
        ]
        for future in futures:
            with pytest.raises(LookupError, match="no reward"):
                future.result(timeout=LONG)
        assert same(before, everything(model))
        client.forward_backward(texts).result(timeout=LONG)
