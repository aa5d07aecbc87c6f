"""Reward functions: what may go wrong in them, and what the built-in ones score."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from datamodules import rewards
from datamodules.rewards.built_in import length_reward
from datamodules.rewards.functions import RewardError, RewardFunction
from datamodules.rewards.weighting import as_reward

PROMPTS = ["prompt zero", "prompt one", "prompt two"]
RESPONSES = ["response zero", "response one", "response two"]


def error_of(fn, **options) -> str:
    with pytest.raises(RewardError) as caught:
        RewardFunction(fn, **options)(PROMPTS, RESPONSES)
    return str(caught.value)


def shows(message: str, row: int) -> bool:
    """Whether the error points at this row and at no other."""
    others = [i for i in range(3) if i != row]
    return (
        f"response {row + 1} of 3" in message
        and repr(PROMPTS[row]) in message
        and repr(RESPONSES[row]) in message
        and not any(repr(RESPONSES[i]) in message for i in others)
    )


# ------------------------------------------------------------------ what it returns


def test_prompts_responses_and_metadata_arrive_as_given_and_floats_return():
    seen = []

    def judge(prompts, responses, metadata=None):
        seen.append((prompts, responses, metadata))
        return torch.tensor([1, 2, 3])

    metadata = [{"id": i} for i in range(3)]
    result = RewardFunction(judge)(PROMPTS, RESPONSES, metadata)
    assert result == [1.0, 2.0, 3.0] and all(type(reward) is float for reward in result)
    RewardFunction(judge, timeout_s=30)(PROMPTS, RESPONSES)
    assert seen == [(PROMPTS, RESPONSES, metadata), (PROMPTS, RESPONSES, None)]


@pytest.mark.parametrize("timeout_s", [None, 30])
def test_what_it_raises_names_function_prompt_and_response(timeout_s):
    def my_judge(prompts, responses, metadata=None):
        for response in responses:
            if "one" in response:
                raise KeyError("no answer")
        return [0.0] * len(responses)

    message = error_of(my_judge, timeout_s=timeout_s)
    assert "my_judge" in message and "KeyError" in message and "no answer" in message
    assert shows(message, 1)


def test_the_culprit_is_looked_for_with_its_own_metadata():
    def judge(prompts, responses, metadata=None):
        return [1 / row["number"] for row in metadata]

    metadata = [{"number": 2}, {"number": 1}, {"number": 0}]
    with pytest.raises(RewardError) as caught:
        RewardFunction(judge)(PROMPTS, RESPONSES, metadata)
    assert shows(str(caught.value), 2) and "ZeroDivisionError" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_rewards_is_refused(count):
    def my_judge(prompts, responses, metadata=None):
        return [1.0] * count

    message = error_of(my_judge)
    assert "my_judge" in message and f"{count} rewards for 3 responses" in message


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_names_its_own_row(wrong):
    message = error_of(lambda prompts, responses, metadata=None: [0.0, 1.0, wrong], name="judge_x")
    assert "judge_x" in message and str(wrong) in message and shows(message, 2)


NO_NUMBERS = ["good", "1.5", [1.0, 2.0], {"score": 1.0}, 10**400]


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=lambda wrong: str(wrong)[:12])
def test_a_reward_that_is_no_number_names_its_own_row(wrong):
    message = error_of(lambda prompts, responses, metadata=None: [0.0, wrong, 1.0], name="judge_x")
    assert "judge_x" in message and shows(message, 1)


@pytest.mark.parametrize(
    "wrong", [None, 1.0, "123", {0: 1.0, 1: 1.0, 2: 1.0}, torch.zeros(3, 2)], ids=str
)
def test_a_result_that_is_no_list_of_numbers_is_refused(wrong):
    message = error_of(lambda prompts, responses, metadata=None: wrong, name="judge_x")
    assert "judge_x" in message


def test_an_error_while_rewards_are_produced_one_by_one_is_caught_too():
    def my_judge(prompts, responses, metadata=None):
        for response in responses:
            if "one" in response:
                raise KeyError("no answer")
            yield 1.0

    message = error_of(my_judge)
    assert "my_judge" in message and "KeyError" in message and shows(message, 1)


def test_what_is_not_callable_or_no_time_at_all_is_refused():
    with pytest.raises(TypeError, match="float"):
        RewardFunction(0.5)
    for seconds in (0, -1):
        with pytest.raises(ValueError, match=rf"timeout_s={seconds}"):
            RewardFunction(length_reward, timeout_s=seconds)


def test_a_reward_function_is_wrapped_once():
    wrapped = as_reward(length_reward)
    assert isinstance(wrapped, RewardFunction) and as_reward(wrapped) is wrapped
    assert wrapped.name == "length_reward"


# --------------------------------------------------------------------------- hangs


def test_a_call_that_hangs_ends_in_an_error_that_names_the_response_that_hangs():
    released = threading.Event()

    def my_judge(prompts, responses, metadata=None):
        if any("one" in response for response in responses):
            released.wait(30)
        return [0.0] * len(responses)

    began = time.perf_counter()
    try:
        message = error_of(my_judge, timeout_s=0.1)
    finally:
        released.set()
    assert time.perf_counter() - began < 10
    assert "my_judge" in message and "timeout_s=0.1" in message
    assert shows(message, 1)


def test_a_timeout_of_the_functions_own_is_not_taken_for_ours():
    def my_judge(prompts, responses, metadata=None):
        raise TimeoutError("the server is slow")

    message = error_of(my_judge, timeout_s=30)
    assert "my_judge raised TimeoutError: the server is slow" in message


def test_a_call_within_its_time_is_no_error():
    def judge(prompts, responses, metadata=None):
        time.sleep(0.05)
        return [1.0] * 3

    assert RewardFunction(judge, timeout_s=30)(PROMPTS, RESPONSES) == [1.0] * 3


def test_a_hanging_call_does_not_keep_the_process_alive():
    program = (
        "import time\n"
        "from datamodules.rewards.functions import RewardError, RewardFunction\n"
        "hang = lambda prompts, responses, metadata=None: time.sleep(600)\n"
        "try:\n"
        "    RewardFunction(hang, timeout_s=0.2)(['p'], ['r'])\n"
        "except RewardError:\n"
        "    print('caught')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "caught\n"


# ------------------------------------------------------------------ built-in rewards


def test_sentiment_has_the_sign_of_the_text():
    texts = ["What a wonderful, lovely day!", "This is horrible. I hate it.", "The table is brown."]
    good, bad, neutral = rewards.sentiment()(["I hate it"] * 3, texts)
    assert 0.5 < good <= 1 and -1 <= bad < -0.5 and neutral == 0


def test_length_is_a_hundredth_a_word_and_at_most_one():
    texts = ["", "one", "one  two\nthree", "word " * 150]
    assert rewards.length()([""] * 4, texts) == pytest.approx([0.0, 0.01, 0.03, 1.0])


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    """A module of the user's, importable for the length of a test."""
    source = (
        "SCALE = 2.0\n"
        "def count(prompts, responses, metadata=None):\n"
        "    return [SCALE * len(response) for response in responses]\n"
        "def broken(prompts, responses, metadata=None):\n"
        "    raise RuntimeError('boom')\n"
    )
    (tmp_path / "my_pkg_for_rewards").mkdir()
    (tmp_path / "my_pkg_for_rewards" / "judges.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_pkg_for_rewards.judges"
    for name in [name for name in sys.modules if name.startswith("my_pkg_for_rewards")]:
        del sys.modules[name]


def test_a_function_is_imported_from_its_path(my_rewards):
    assert rewards.function(f"{my_rewards}:count")(["p"] * 2, ["ab", ""]) == [4.0, 0.0]
    with pytest.raises(RewardError, match=rf"{my_rewards}:broken .*boom"):
        rewards.function(f"{my_rewards}:broken", timeout_s=30)(["p"], ["r"])


@pytest.mark.parametrize("path", ["", "judges", "judges:", ":count", "{}.count"])
def test_a_path_of_another_form_is_answered_with_the_form(my_rewards, path):
    with pytest.raises(ValueError, match=r"reward\.path=.*my_pkg\.my_module:my_fn"):
        rewards.function(path.format(my_rewards))


@pytest.mark.parametrize("path", ["no_such_module_anywhere:count", "{}:absent", "{}:SCALE"])
def test_a_path_where_nothing_callable_stands_is_refused_by_name(my_rewards, path):
    path = path.format(my_rewards)
    with pytest.raises(ValueError, match=rf"reward\.path='{path}'"):
        rewards.function(path)
