"""The end of a pipeline: nothing hangs, nothing is left without an answer."""

import contextlib
import sys
import threading
import time
from concurrent.futures import CancelledError

import pytest
from pipeline_helpers import (
    LONG,
    Gate,
    batch,
    client_of,
    in_child,
    mean_nll,
    pipeline_of,
    sgd,
    tiny,
)

PROMPT = [40, 50]


def outcome(future):
    """``done``, ``cancelled`` or the error's name; fails where there is none in time."""
    try:
        future.result(timeout=LONG)
    except CancelledError:
        return "cancelled"
    except Exception as error:
        assert not isinstance(error, TimeoutError), "a future was left without an answer"
        return type(error).__name__
    return "done"


def queue_everything(client, optimizer, name=0):
    """One operation of each kind."""
    return [
        client.forward_backward(batch(5)),
        client.sample(PROMPT, max_tokens=3),
        client.optim_step(optimizer),
        client.forward_backward_custom(batch(5), mean_nll),
        client.sample(PROMPT, max_tokens=3),
        client.optim_step(optimizer),
        client.forward(batch(5)),
        client.forward(batch(5), use_reference=True),
        client.save_state(f"here{name}"),
        client.submit(time.sleep, 0.01),
        client.submit(str, client.forward(batch(5))),
    ]


def shut_down(client, **options):
    """In a thread, so that what hangs fails."""
    thread = threading.Thread(target=client.shutdown, kwargs=options, daemon=True)
    thread.start()
    return thread


def test_a_shutdown_waits_for_all_that_is_queued(tmp_path):
    def child():
        model = tiny()
        client = client_of(model, tiny(), checkpoint_dir=tmp_path)
        optimizer = sgd(model)
        with Gate(client):
            first = client.optim_step(optimizer)
            futures = [f for i in range(5) for f in queue_everything(client, optimizer, i)]
            ending = shut_down(client)
            time.sleep(0.1)
            assert ending.is_alive()
        ending.join(LONG)
        assert not ending.is_alive()
        assert all(future.done() for future in [first, *futures])
        assert {outcome(future) for future in [first, *futures]} == {"done"}

    in_child(child)


def test_a_shutdown_that_does_not_wait_still_answers_all_that_is_queued(tmp_path):
    def child():
        model = tiny()
        client = client_of(model, tiny(), checkpoint_dir=tmp_path)
        optimizer = sgd(model)
        with Gate(client) as gate:
            first = client.optim_step(optimizer)
            futures = queue_everything(client, optimizer)
            client.shutdown(wait=False)
            assert not gate.future.done()
        assert {outcome(future) for future in [first, *futures]} == {"done"}

    in_child(child)


@pytest.mark.parametrize("wait", [True, False])
def test_a_shutdown_that_cancels_answers_everything_and_runs_nothing_more(wait, tmp_path):
    def child():
        model = tiny()
        client = client_of(model, tiny(), checkpoint_dir=tmp_path)
        optimizer, ran = sgd(model), []

        def loss(model, inputs, outputs):
            ran.append(1)
            return mean_nll(model, inputs, outputs)

        with Gate(client) as gate:
            first = client.optim_step(optimizer)
            futures = [f for i in range(3) for f in queue_everything(client, optimizer, i)]
            custom = [client.forward_backward_custom(batch(5), loss) for _ in range(3)]
            ending = shut_down(client, cancel_pending=True, wait=wait)
            time.sleep(0.2)
        ending.join(LONG)
        assert not ending.is_alive()
        assert outcome(gate.future) == "done"
        assert outcome(first) == "cancelled"
        assert {outcome(future) for future in custom} == {"cancelled"} and not ran
        model_bound = [f for i, f in enumerate(futures) if i % 11 < 7]  # samples among them
        assert {outcome(future) for future in model_bound} == {"cancelled"}
        assert {outcome(future) for future in futures} <= {"done", "cancelled"}
        client.shutdown()

    in_child(child)


@pytest.mark.parametrize("make", [pipeline_of, client_of])
def test_an_exception_in_a_with_block_ends_it_and_is_raised(make, tmp_path):
    def child():
        model = tiny()
        optimizer = sgd(model)
        futures = []
        with pytest.raises(KeyError, match="mine"), make(model, checkpoint_dir=tmp_path) as ended:
            pipeline = getattr(ended, "pipeline", ended)
            for _ in range(20):
                futures += [
                    pipeline.forward_backward(**batch(30, 30, 30)),
                    pipeline.sample(PROMPT, max_tokens=50, wait=False),
                    pipeline.optim_step(optimizer),
                    pipeline.save_state("here", wait=False),
                    pipeline.submit(str, futures[-1] if futures else None),
                ]
            raise KeyError("mine")
        assert all(future.done() for future in futures)
        with pytest.raises(RuntimeError):
            pipeline.forward(**batch(5))

    in_child(child)


def test_a_with_block_that_ends_well_waits_for_what_is_queued():
    model = tiny()
    with client_of(model, tiny()) as client:
        futures = [client.forward_backward(batch(30, 30)), client.optim_step(sgd(model))]
        futures += [client.sample(PROMPT, max_tokens=30), client.forward(batch(5), True)]
    assert all(future.done() for future in futures)
    assert {outcome(future) for future in futures} == {"done"}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.forward_backward(batch(4)),
        lambda client: client.forward_backward_custom(batch(4), mean_nll),
        lambda client: client.forward(batch(4)),
        lambda client: client.forward(batch(4), use_reference=True),
        lambda client: client.optim_step(sgd(client.pipeline.model)),
        lambda client: client.sample(PROMPT),
        lambda client: client.pipeline.sample(PROMPT),
        lambda client: client.pipeline.save_state("late"),
        lambda client: client.pipeline.load_state("late"),
        lambda client: client.submit(print),
    ],
)
@pytest.mark.parametrize("cancel", [True, False])
def test_calls_after_the_end_raise_at_once(call, cancel, tmp_path):
    client = client_of(reference=tiny(), checkpoint_dir=tmp_path)
    client.shutdown(cancel_pending=cancel)
    client.shutdown(cancel_pending=cancel)  # once more does no harm
    with pytest.raises(RuntimeError):
        call(client)
    assert not list(tmp_path.iterdir())


def test_a_shutdown_in_the_middle_of_a_text_ends():
    def child():
        pipeline = pipeline_of()
        future = pipeline.sample([PROMPT] * 8, max_tokens=200, wait=False)
        while not future.running():
            time.sleep(0.001)
        waiting = [pipeline.sample(PROMPT, max_tokens=3, wait=False) for _ in range(3)]
        ending = shut_down(pipeline, cancel_pending=True)
        ending.join(LONG)
        assert not ending.is_alive()
        assert outcome(future) in {"done", "cancelled"}
        assert {outcome(f) for f in waiting} <= {"done", "cancelled"}

    in_child(child)


def test_samples_asked_for_while_the_pipeline_is_shut_down_are_answered_or_refused():
    def in_slow_motion(frame, event, argument):
        if "forward_backward" in frame.f_code.co_filename and event in ("call", "return"):
            time.sleep(0.02)

    def child():
        pipeline, futures, going = pipeline_of(), [], threading.Event()

        def ask():
            with contextlib.suppress(RuntimeError):
                while True:
                    futures.append(pipeline.sample(PROMPT, max_tokens=1, wait=False))
                    going.set()
                    time.sleep(0.001)

        def end():
            sys.setprofile(in_slow_motion)
            pipeline.shutdown(cancel_pending=True)

        with Gate(pipeline):
            asking = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
            for thread in asking:
                thread.start()
            assert going.wait(LONG)
            ending = threading.Thread(target=end, daemon=True)
            ending.start()
            time.sleep(0.5)
        for thread in [ending, *asking]:
            thread.join(LONG)
            assert not thread.is_alive()
        waiting = sum(not future.done() for future in futures)
        assert waiting == 0, f"{waiting} of {len(futures)} samples were left without an answer"

    in_child(child)


def test_a_callback_that_asks_again_when_its_sample_is_cancelled_does_not_hang_the_end():
    def child():
        pipeline, asked = pipeline_of(), []

        def again(future):
            with contextlib.suppress(RuntimeError):
                asked.append(pipeline.sample(PROMPT, max_tokens=2, wait=False))

        with Gate(pipeline):
            future = pipeline.sample(PROMPT, max_tokens=2, wait=False)
            future.add_done_callback(again)
            ending = shut_down(pipeline, cancel_pending=True)
            time.sleep(0.2)
        ending.join(4)
        assert not ending.is_alive(), "shutdown hangs"
        assert {outcome(f) for f in [future, *asked]} <= {"done", "cancelled"}

    in_child(child, seconds=6)


def test_a_thousand_operations_from_eight_threads_are_all_answered(tmp_path):
    def child():
        model = tiny()
        client = client_of(model, tiny(), max_workers=2, checkpoint_dir=tmp_path)
        optimizer, texts = sgd(model, lr=1e-3), batch(3)
        futures = [[] for _ in range(8)]

        def work(mine, thread):
            for i in range(125):
                kind = (i + thread) % 7
                if kind == 0:
                    mine.append(client.forward_backward(texts))
                elif kind == 1:
                    mine.append(client.optim_step(optimizer))
                elif kind == 2:
                    mine.append(client.sample(PROMPT, max_tokens=2))
                elif kind == 3:
                    mine.append(client.submit(len, PROMPT))
                elif kind == 4:
                    mine.append(client.forward(texts, use_reference=True))
                elif kind == 5:
                    mine.append(client.submit(str, mine[-1]) if mine else client.submit(str))
                else:
                    mine.append(client.forward(texts))

        threads = [
            threading.Thread(target=work, args=(futures[i], i), daemon=True) for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        ending = shut_down(client)
        ending.join(LONG)
        assert not ending.is_alive()
        assert sum(map(len, futures)) == 1_000
        assert all(future.done() for mine in futures for future in mine)
        # Passes and steps of eight threads get in each other's way, and what waits for one of
        # those fails with it; nothing else does.
        said = [outcome(future) for mine in futures for future in mine]
        assert set(said) <= {"done", "RuntimeError"}
        assert said.count("done") > 700

    in_child(child)
