"""The same client over Ray, started on this machine."""

import os
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlmodules.forward_backward import AsyncTrainingClient
from rlmodules.forward_backward.remote import RemoteFuture, RemoteTrainingClient
from rlmodules.models import ModelConfig, load_model

ROOT = Path(__file__).parents[2]
IDS = torch.arange(3, 27).view(2, 12)
WAIT = 60


def make(checkpoints="checkpoints"):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return AsyncTrainingClient(
        load_model(ModelConfig(name="random:tiny")),
        device="cpu",
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        checkpoint_dir=checkpoints,
    )


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    pytest.importorskip("ray")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of this process alone
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with AsyncTrainingClient.connect(
        "local",
        partial(make, str(tmp_path_factory.mktemp("remote"))),
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    ) as client:
        client.save_state("start").result(5 * WAIT)  # Ray and the imports over there begin now
        yield client


@pytest.fixture
def client(remote):
    """As it was in the beginning."""
    remote.load_state("start").result(WAIT)
    return remote


def losses_of(client, steps=4):
    queued = []
    for i in range(steps):
        queued.append(client.forward_backward({"input_ids": IDS + i}))
        client.optim_step(max_grad_norm=0.5)
    return [future.result(WAIT).loss for future in queued]


def test_a_loop_comes_to_the_same_numbers_there_as_here(client):
    threads = torch.get_num_threads()
    try:
        with make() as here:
            assert losses_of(client) == losses_of(here)
            said = [c.sample([3, 4, 5], max_tokens=6, seed=1) for c in (client, here)]
            assert said[0].result(WAIT) == said[1].result(WAIT)
    finally:
        torch.set_num_threads(threads)


def test_calls_return_at_once_and_run_in_their_order(client):
    queued = []
    for _ in range(25):
        queued += [client.forward_backward({"input_ids": IDS}), client.optim_step()]
    assert not queued[-1].done()
    assert [future.result(WAIT).step for future in queued[1::2]] == list(range(1, 26))


def test_an_error_is_raised_here_with_its_own_type_and_its_text(client):
    broken = client.forward_backward({"input_ids": IDS}, loss_fn="cross_entropie")
    with pytest.raises(ValueError, match="cross_entropie"):
        broken.result(WAIT)
    early = client.optim_step()
    with pytest.raises(RuntimeError, match="0 of gradient_accumulation_steps=1"):
        early.result(WAIT)
    assert client.forward({"input_ids": IDS}).result(WAIT).logprobs.shape == (2, 12)


def test_callbacks_run_here_and_their_results_are_awaited_before_a_call_is_sent(client):
    policy = client.forward({"input_ids": IDS})
    old = client.submit(lambda result: (os.getpid(), result.logprobs), policy)
    assert old.result(WAIT)[0] == os.getpid()
    batch = {
        "input_ids": IDS,
        "old_logprobs": client.submit(lambda pair: pair[1], old),
        "advantages": torch.ones(2),
    }
    result = client.forward_backward(batch, loss_fn="importance_sampling").result(WAIT)
    assert result.metrics["ratio"] == pytest.approx(1.0)
    client.optim_step().result(WAIT)


def test_a_callback_that_fails_costs_the_call_that_needs_it_alone(client):
    lost = client.forward_backward({"input_ids": client.submit(lambda: 1 / 0)})
    after = client.forward_backward({"input_ids": IDS})
    with pytest.raises(ZeroDivisionError):
        lost.result(WAIT)
    assert after.result(WAIT).loss > 0


def test_what_cannot_be_sent_costs_its_call_alone(client):
    lock = threading.Lock()
    lost = client.forward_backward_custom({"input_ids": IDS}, lambda *_: lock)
    after = client.forward({"input_ids": IDS})
    with pytest.raises(TypeError, match="lock"):
        lost.result(WAIT)
    assert after.result(WAIT).logprobs.shape == (2, 12)


def slow(model, inputs, outputs):
    time.sleep(2)
    return outputs.logits.mean()


def test_what_has_not_started_there_can_be_cancelled_here(client):
    client.forward_backward_custom({"input_ids": IDS}, slow)
    waiting = client.optim_step()
    time.sleep(0.5)  # until it has arrived
    assert waiting.cancel() and waiting.cancelled()
    assert client.optim_step().result(WAIT).step == 1  # the other one took no step


def test_what_was_not_sent_when_a_client_is_ended_is_cancelled(remote):
    """Over another actor of the same cluster; nothing is left waiting."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    options = {"runtime_env": {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}}
    other, gate = AsyncTrainingClient.connect("local", make, **options), threading.Event()
    held = other.submit(gate.wait)
    first = other.forward({"input_ids": IDS, "mask": held})  # is being sent, and waits
    behind = [other.forward({"input_ids": IDS}) for _ in range(3)]
    time.sleep(0.2)
    ending = threading.Thread(target=other.shutdown, kwargs={"cancel_pending": True})
    ending.start()
    time.sleep(0.2)
    gate.set()
    ending.join(WAIT)
    assert not ending.is_alive()
    assert first.exception(WAIT) is not None  # True is no mask
    assert all(future.cancelled() for future in behind)


def test_word_of_a_cancelled_call_that_comes_before_the_answer_is_its_cancelling():
    """That the other side has cancelled a call is told twice: by the call, and by the answer."""
    ray = pytest.importorskip("ray")
    here, told = SimpleNamespace(_ray=ray), Future()
    hand_over = RemoteTrainingClient._hand_over
    told.set_exception(ray.exceptions.TaskCancelledError())

    def cancel_there():
        hand_over(here, told, future)
        return future.cancelled()

    future = RemoteFuture(cancel_there)
    assert future.cancel() and future.cancelled()
    failed, other = Future(), RemoteFuture(lambda: True)
    failed.set_exception(ZeroDivisionError())
    hand_over(here, failed, other)
    assert not other.cancelled() and isinstance(other.exception(), ZeroDivisionError)
