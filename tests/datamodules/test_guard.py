"""Guarded calls: what one of them does, the others do not feel."""

import threading
import time
from functools import partial

import pytest

from datamodules.guard import Failure, run_all


@pytest.fixture
def stuck():
    """A call that hangs until the test is over."""
    release = threading.Event()
    yield release.wait
    release.set()


def later(seconds, value):
    time.sleep(seconds)
    return value


def raises(error):
    raise error


def test_results_come_in_the_order_of_the_calls_whatever_they_take():
    calls = [partial(later, 0.03 * (4 - i), i) for i in range(5)]
    assert run_all(calls, workers=5) == [0, 1, 2, 3, 4]
    assert run_all(calls, workers=1, timeout_s=5) == [0, 1, 2, 3, 4]


def test_without_calls_there_are_no_results():
    assert run_all([]) == [] and run_all([], timeout_s=1.0) == []


@pytest.mark.parametrize("timeout_s", [None, 5.0])
@pytest.mark.parametrize("error", [ValueError("no such hotel"), SystemExit(3), KeyboardInterrupt()])
def test_a_call_that_raises_costs_itself_alone(error, timeout_s):
    calls = [lambda: "a", partial(raises, error), lambda: None]
    first, failed, last = run_all(calls, timeout_s=timeout_s, workers=1)
    assert (first, last) == ("a", None)
    assert isinstance(failed, Failure) and failed.error is error
    assert str(failed).startswith(f"{type(error).__name__}: {error} (test_guard.py:")


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_call_that_hangs_is_given_up_and_the_rest_goes_on(stuck, workers):
    calls = [stuck, lambda: 1, stuck, lambda: 2]
    results = run_all(calls, timeout_s=0.2, workers=workers)
    assert results[1::2] == [1, 2]
    for failure in results[::2]:
        assert isinstance(failure.error, TimeoutError)
        assert "0.2 seconds" in str(failure)


def test_the_time_of_a_call_starts_when_it_does():
    """Ten calls of 0.1 s, one after the other, under a limit of 0.5 s: none is late."""
    assert run_all([partial(later, 0.1, i) for i in range(10)], timeout_s=0.5, workers=1) == [
        *range(10)
    ]


def test_many_calls_all_come_back():
    assert run_all([partial(int, i) for i in range(3000)], timeout_s=10.0) == [*range(3000)]


def test_what_returns_after_its_time_is_not_taken():
    """The other worker keeps the loop going until the late call has returned."""
    others = [partial(later, 0.3, i) for i in range(3)]
    late, *rest = run_all([partial(later, 0.7, "late"), *others], timeout_s=0.5, workers=2)
    assert isinstance(late, Failure) and rest == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_calls_run_at_once_than_there_are_workers(workers):
    running, most, lock = [0], [0], threading.Lock()

    def call():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02)
        with lock:
            running[0] -= 1

    run_all([call] * 12, workers=workers, timeout_s=5.0)
    assert most[0] == workers


def test_a_thread_that_hangs_does_not_keep_the_interpreter_alive(stuck):
    run_all([stuck], timeout_s=0.1)
    left = [t for t in threading.enumerate() if t.name == "guarded call"]
    assert left and all(thread.daemon for thread in left)
