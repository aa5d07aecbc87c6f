"""Calls from inside a loss: refused or answered, never waiting for themselves."""

import threading
import time

import pytest
import torch
from pipeline_helpers import (
    LONG,
    batch,
    client_of,
    everything,
    in_child,
    mean_nll,
    pipeline_of,
    same,
    tiny,
)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.pipeline.sample([5, 6], max_tokens=2),
        lambda client: client.sample([5, 6], max_tokens=2).result(timeout=LONG),
        lambda client: client.forward(batch(4)).result(timeout=LONG),
        lambda client: client.forward(batch(4), use_reference=True).result(timeout=LONG),
        lambda client: client.forward_backward(batch(4)).result(timeout=LONG),
        lambda client: client.forward_backward_custom(batch(4), mean_nll).result(timeout=LONG),
        lambda client: client.optim_step().result(timeout=LONG),
        lambda client: client.pipeline.save_state("inside"),
        lambda client: client.pipeline.load_state("outside"),
    ],
    ids=["sample", "sample2", "forward", "reference", "backward", "custom", "step", "save", "load"],
)
def test_a_call_from_inside_a_loss_is_refused_and_does_not_wait_for_itself(call, tmp_path):
    def child():
        model = tiny()
        with client_of(model, checkpoint_dir=tmp_path, optimizer=torch.optim.SGD) as client:
            client.save_state("outside").result(timeout=LONG)
            before = everything(model)

            def loss(model, inputs, outputs):
                call(client)
                return mean_nll(model, inputs, outputs)

            start = time.perf_counter()
            with pytest.raises(RuntimeError, match="inside"):
                client.forward_backward_custom(batch(4), loss).result(timeout=LONG)
            assert time.perf_counter() - start < 10
            assert same(before, everything(model))
            client.forward_backward(batch(4)).result(timeout=LONG)
            client.optim_step().result(timeout=LONG)

    in_child(child)


def test_a_loss_may_ask_a_reference_that_has_a_thread_of_its_own_or_be_refused_but_not_hang():
    def child():
        with client_of(reference=tiny()) as client:

            def loss(model, inputs, outputs):
                client.forward(batch(4), use_reference=True).result(timeout=LONG)
                return mean_nll(model, inputs, outputs)

            future = client.forward_backward_custom(batch(4), loss)
            start = time.perf_counter()
            future.exception(timeout=LONG)
            assert time.perf_counter() - start < 10

    in_child(child)


def test_a_loss_that_shuts_down_the_pipeline_does_not_hang(tmp_path):
    def child():
        pipeline = pipeline_of(checkpoint_dir=tmp_path)
        queued = threading.Event()

        def loss(model, inputs, outputs):
            assert queued.wait(LONG)
            pipeline.shutdown()
            return mean_nll(model, inputs, outputs)

        future = pipeline.forward_backward_custom(**batch(4), custom_loss_fn=loss)
        saved = pipeline.save_state("later", wait=False)
        queued.set()
        future.exception(timeout=LONG)
        saved.exception(timeout=LONG)

    in_child(child, seconds=8)
