"""Final answers: which one counts, when two are equal, and that no text can hold up a check."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest

from datamodules import is_correct
from datamodules.mathematics import formulas
from datamodules.mathematics.formulas import Timeout, formulas_equal
from datamodules.rewards.answers import as_number

ROOT = Path(__file__).parents[3]
COSTLY = [
    "9^{9^{9^{9^{9}}}}+x",
    "(x+1)^{9999999}",
    "\\binom{99999999}{4999999}",
]


def test_a_list_of_guesses_is_worth_its_last_one_alone():
    guesses = " ".join(str(n) for n in range(1, 21))
    assert [n for n in range(1, 21) if is_correct(guesses, str(n))] == [20]
    assert not any(is_correct(f"Answer: {guesses.replace(' ', ', ')}", str(n)) for n in range(21))


def test_numbers_are_exact():
    assert as_number("0.1").value + as_number("0.2").value == as_number("0.3").value
    assert not is_correct("1.0000000000000001", "1")
    assert as_number("1/3").value == Fraction(1, 3)
    assert as_number("12 apples") is None and as_number("7 + 5") is None


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "1e999999999", "1e999" * 2000, "9" + "**9" * 5000, "\\boxed{" * 5000]
    + [piece * 50_000 for piece in ("1 ", "1,", "1/", "answer is ", "$1$ ", "\\(", "{", "- ", " ")],
    ids=lambda text: text[:12],
)
def test_monstrous_texts_are_answered_at_once(text):
    began = time.thread_time()
    assert not is_correct(text, "7")
    assert not is_correct(text, "\\sqrt{2}", timeout_s=0.5)
    assert time.thread_time() - began < 5


@pytest.fixture
def patient():
    """A worker that has started: its start is no part of what the tests below time."""
    assert formulas_equal("x", "x", 60.0)


@pytest.mark.parametrize("formula", COSTLY)
def test_what_takes_too_long_is_wrong_and_said_so(formula, patient):
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"could not be compared with 'x\+1' within 0\.5 seconds"):
        assert not is_correct(f"\\boxed{{{formula}}}", "x+1", 0.5)
    assert time.monotonic() - began < 20  # none of them ends by itself
    assert formulas_equal("x+1", "1+x", 20.0), "the next one has a new process"


def test_an_answer_that_was_too_costly_once_costs_nothing_again(patient, monkeypatch):
    with pytest.raises(Timeout):
        formulas_equal("y+1", COSTLY[0], 0.5)
    monkeypatch.delattr(formulas.Worker, "ask")
    with pytest.raises(Timeout):
        formulas_equal("y+1", COSTLY[0], 0.5)


def test_a_gold_that_nobody_can_read_is_said_so(patient):
    with pytest.warns(UserWarning, match=r"expected answer .*x\+\\\\wobble.* cannot be read"):
        assert not is_correct("\\boxed{x+2}", "x+\\wobble{", 20.0)


def test_many_threads_get_their_own_answers(patient):
    pairs = [(f"x+{i}", f"{i + i % 2}+x") for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        equal = list(threads.map(lambda pair: formulas_equal(*pair, 60.0), pairs))
    assert equal == [i % 2 == 0 for i in range(40)]


def test_a_worker_that_died_is_replaced(patient):
    worker = formulas._idle.get()
    worker.process.kill()
    worker.process.wait()
    formulas._idle.put(worker)
    assert formulas_equal("x+z", "z+x", 60.0)


def test_an_interrupted_call_leaves_no_reply_to_the_next(patient, monkeypatch):
    def interrupted(self, expected, answer, timeout_s):
        ask(self, expected, answer, timeout_s)
        raise KeyboardInterrupt

    ask = formulas.Worker.ask
    monkeypatch.setattr(formulas.Worker, "ask", interrupted)
    used = formulas._idle.queue[-1]
    with pytest.raises(KeyboardInterrupt):
        formulas_equal("x+y", "y+x", 20.0)
    assert used not in formulas._idle.queue


def test_the_worker_is_light_and_ends_with_the_program():
    program = (
        "from datamodules.mathematics import formulas\n"
        "print(formulas.formulas_equal('1+x', 'x+1', 60.0))\n"
        "worker = formulas._idle.queue[-1].process\n"
        "print('torch' in open(f'/proc/{worker.pid}/maps').read(), worker.pid)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.stderr == ""
    equal, torch, pid = done.stdout.split()
    assert (equal, torch) == ("True", "False")
    assert not os.path.exists(f"/proc/{pid}")
