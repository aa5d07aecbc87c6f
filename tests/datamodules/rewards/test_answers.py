"""Final answers: which one counts, when two are equal, and that no text can hold up a check."""

import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest

from datamodules.rewards import answers
from datamodules.rewards.answers import as_number, formulas_equal, is_correct, stated_number

RIGHT = [
    # notation
    ("1,000", "1000"),
    ("1000", "1,000"),
    ("1{,}000", "1000"),
    ("1\\,000", "1000"),
    ("1\u202f000", "1000"),
    ("\\frac{1}{2}", "0.5"),
    ("0.5", "\\frac{1}{2}"),
    ("\\dfrac12", "0.5"),
    ("-\\frac{1}{2}", "-0.5"),
    ("1\\frac{1}{2}", "1.5"),
    ("1 1/2", "1.5"),
    ("3/4", "0.75"),
    ("6/8", "3/4"),
    ("0.50", ".5"),
    ("1e3", "1000"),
    ("3 \\times 10^{5}", "300000"),
    ("$5.00", "5"),
    ("\\$5", "5"),
    ("$5$", "5"),
    ("\\( 5 \\)", "5"),
    ("50%", "50"),
    ("50%", "0.5"),
    ("50\\%", "50%"),
    ("5 apples", "5"),
    ("**5**", "5"),
    ("\u22125", "-5"),
    ("-$5", "-5"),
    ("x = - 5", "-5"),
    ("5 - 10 = -5", "-5"),
    # which one counts
    ("12.", "12"),
    ("x = 5", "5"),
    ("2 + 3 = 5", "5"),
    ("\\boxed{5}", "5"),
    ("So \\boxed{x = 5}, not 6.", "5"),
    ("\\boxed{\\frac{3}{4}}", "0.75"),
    ("\\boxed{5\\text{ apples}}", "5"),
    ("5 * 3 = 15, and 15 - 3 = 12.\n#### 12", "12"),
    ("The answer is 12.", "12"),
    ("The answer to 7 + 5 is 12", "12"),
    ("**Answer:** 12, because 7 + 5 = 12", "12"),
    ("The answer is 5 apples out of 12.", "5"),
    ("Answer: 3\nNo. Answer: 4", "4"),
    ("Answer: 4\nI am sure of it, in 99 of 100 cases.", "4"),
    ("12\nAnswer:", "12"),
    ("What is 7 + 5? 12", "12"),
    ("My incorrect answer was 3. The answer is 5.", "5"),
    ("The answer is not 4. It is 5.", "5"),
    # no numbers
    ("The answer is Paris.", "paris"),
    ("(B)", "(B)"),
]
WRONG = [
    ("-5", "5"),
    ("5", "-5"),
    ("Answer: -5", "5"),
    ("50", "0.5"),
    ("50%", "5000%"),
    ("1,000", "1"),
    ("12", "2"),
    ("1/0", "0"),
    ("v3.4.5", "5"),
    # nothing stated
    ("", "4"),
    ("I do not know", "4"),
    ("Answer:", "4"),
    ("incorrect Answer: 4", "4"),
    ("The answer is not 4.", "4"),
    # several
    ("Answer: 3\nNo. Answer: 4", "3"),
    ("1 2 3 4 5 6", "3"),
    ("Answer: 3, 4, 5", "5"),
    ("Answer: 3, 4, 5", "3"),
    ("Answer: 3 or 5", "3"),
    ("\\boxed{3} or \\boxed{5}", "3"),
    # work that is still to be done is no answer to itself
    ("7 + 5", "12"),
    ("What is 0 + 5?", "5"),
    ("10 - 5", "-5"),
    ("10 -5", "-5"),
    ("Answer: 7 + 5", "12"),
    ("\\boxed{7+5}", "12"),
    ("\\boxed{\\sqrt{4}}", "2"),
    ("8/2", "4"),
    ("9**9", "9"),
    # more than the number
    ("\\boxed{2\\sqrt{3}}", "2"),
    ("2x", "2"),
    ("5:30", "30"),
    ("It is not Paris", "Paris"),
    ("\\boxed{Pairs}", "Paris"),
]
FORMULAS = [
    ("$2\\sqrt{3}$", "\\sqrt{12}", True),
    ("\\boxed{1+x^2}", "x^2+1", True),
    ("\\boxed{(x+1)^2}", "x^2+2x+1", True),
    ("The answer is $\\frac{\\pi}{2}$.", "\\pi/2", True),
    ("\\boxed{2, 1}", "1, 2", True),
    ("\\boxed{3}", "x = 3", True),
    ("\\boxed{x+2}", "x+1", False),
    ("\\boxed{(1, 2)}", "[1, 2]", False),
    ("\\boxed{\\frac{", "x+1", False),
]
COSTLY = [
    "9^{9^{9^{9^{9}}}}",
    "(x+1)^{9999999}",
    "\\prod_{n=1}^{99999} (x+n)",
]


@pytest.mark.parametrize(("response", "expected"), RIGHT)
def test_right_however_it_is_written(response, expected):
    assert is_correct(response, expected)


@pytest.mark.parametrize(("response", "expected"), WRONG)
def test_wrong_though_the_right_text_is_there(response, expected):
    assert not is_correct(response, expected)


@pytest.mark.parametrize(("response", "expected", "equal"), FORMULAS)
def test_formulas_are_compared_by_what_they_mean(response, expected, equal):
    assert is_correct(response, expected, timeout_s=20) is equal


def test_a_list_of_guesses_is_worth_its_last_one_alone():
    guesses = " ".join(str(n) for n in range(1, 21))
    assert [n for n in range(1, 21) if is_correct(guesses, str(n))] == [20]
    assert not any(is_correct(f"Answer: {guesses.replace(' ', ', ')}", str(n)) for n in range(21))


def test_numbers_are_exact():
    assert as_number("0.1").value + as_number("0.2").value == as_number("0.3").value
    assert not is_correct("1.0000000000000001", "1")
    assert stated_number("1/3").value == Fraction(1, 3)
    assert as_number("12 apples") is None and as_number("7 + 5") is None


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "1e999999999", "1e999" * 2000, "9" + "**9" * 5000, "\\boxed{" * 5000]
    + [piece * 50_000 for piece in ("1 ", "1,", "1/", "answer is ", "$1$ ", "\\(", "{", "- ", " ")],
    ids=lambda text: text[:12],
)
def test_monstrous_texts_are_answered_at_once(text):
    began = time.monotonic()
    assert not is_correct(text, "7")
    assert not is_correct(text, "\\sqrt{2}", timeout_s=0.5)
    assert time.monotonic() - began < 5


@pytest.fixture
def patient():
    """A worker that has started: its start is no part of what the tests below time."""
    assert formulas_equal("x", "x", 60.0)


@pytest.mark.parametrize("formula", COSTLY)
def test_what_takes_too_long_is_wrong_and_said_so(formula, patient):
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"could not be compared with 'x\+1' within 0\.5 seconds"):
        assert not formulas_equal("x+1", formula, 0.5)
    assert time.monotonic() - began < 5
    assert formulas_equal("x+1", "1+x", 20.0), "the next one has a new process"


def test_an_answer_that_was_too_costly_once_costs_nothing_again(patient):
    with pytest.warns(UserWarning):
        formulas_equal("y+1", COSTLY[0], 0.5)
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not formulas_equal("y+1", COSTLY[0], 0.5)
    assert time.monotonic() - began < 0.1


def test_many_threads_get_their_own_answers(patient):
    pairs = [(f"x+{i}", f"{i + i % 2}+x") for i in range(40)]
    with ThreadPoolExecutor(8) as threads:
        equal = list(threads.map(lambda pair: formulas_equal(*pair, 60.0), pairs))
    assert equal == [i % 2 == 0 for i in range(40)]


def test_a_worker_that_died_is_replaced(patient):
    worker = answers._idle.get()
    worker.process.kill()
    worker.process.wait()
    answers._idle.put(worker)
    assert formulas_equal("x+z", "z+x", 60.0)


def test_an_interrupted_call_leaves_no_reply_to_the_next(patient, monkeypatch):
    def interrupted(self, expected, answer, timeout_s):
        ask(self, expected, answer, timeout_s)
        raise KeyboardInterrupt

    ask = answers._Worker.ask
    monkeypatch.setattr(answers._Worker, "ask", interrupted)
    used = answers._idle.queue[-1]
    with pytest.raises(KeyboardInterrupt):
        formulas_equal("x+y", "y+x", 20.0)
    assert used not in answers._idle.queue


def test_the_worker_is_light_and_ends_with_the_program():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import answers\n"
        "print(answers.is_correct(r'\\boxed{1+x}', 'x+1', 60.0))\n"
        "worker = answers._idle.queue[-1].process\n"
        "print('torch' in open(f'/proc/{worker.pid}/maps').read(), worker.pid)\n"
    )
    folder = os.path.dirname(answers.__file__)
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    equal, torch, pid = done.stdout.split()
    assert (equal, torch) == ("True", "False")
    assert not os.path.exists(f"/proc/{pid}")
