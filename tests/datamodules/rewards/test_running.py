"""Where rewards run: a thread, the main thread, a process; and what they may do there."""

import asyncio
import contextvars
import functools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from math_verify import parse, verify

from datamodules import TextGenerationEnv
from datamodules.guard import in_main
from datamodules.rewards import function
from datamodules.rewards.functions import RewardError, RewardFunction
from datamodules.rollouts.episodes import play, score
from datamodules.types import Evaluation, Response, Trajectory, sequence_of
from rlmodules.models.embedded import tiny_tokenizer

ROOT = Path(__file__).parents[3]
MAIN = threading.main_thread()
TOKENIZER = tiny_tokenizer()


class Policy:
    """Says ``yes``; its evaluation notes what is running meanwhile."""

    def act(self, observations, *, seeds, env):
        tokens = [*TOKENIZER("yes")["input_ids"], TOKENIZER.eos_token_id]
        return [Response(tokens, [0.0] * len(tokens), [], "eos") for _ in observations]

    def fits(self, observation, env):
        return True

    def evaluate(self, trajectories):
        pairs = [sequence_of(trajectory) for trajectory in trajectories]
        mask = torch.ones(len(pairs), len(pairs[0][1]), dtype=torch.bool)
        zeros = torch.zeros(mask.shape)
        return Evaluation([s for s, _ in pairs], [p for _, p in pairs], mask, zeros, None, zeros)


def rewards_of(reward, **options):
    """Rewards of two episodes that are played and scored as in training."""
    env = TextGenerationEnv(TOKENIZER, ["a", "b"], reward_fn=reward, **options)
    env.attach(None)
    return [t.total_reward for t in play(Policy(), env, [0, 1], [0, 1]).trajectories]


def checked_by_math_verify(completions, **kwargs):
    return [float(verify(parse("yes"), parse(text)) or 1.0) for text in completions]


def hides_what_math_verify_says(completions, **kwargs):
    try:
        return checked_by_math_verify(completions)
    except Exception:
        return [0.0] * len(completions)


CONNECTION = sqlite3.connect(":memory:")
LOCAL = threading.local()
LOCAL.scale = 3.0


def queries(completions):
    return [CONNECTION.execute("SELECT 1.0").fetchone()[0] for _ in completions]


def uses_a_thread_local(completions):
    return [LOCAL.scale / 3 for _ in completions]


def wakes(completions):
    signal.set_wakeup_fd(-1)
    return [1.0] * len(completions)


def hides_it_in_threads_of_its_own(completions, **kwargs):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda text: hides_what_math_verify_says([text])[0], completions))


WANT_MAIN = [checked_by_math_verify, hides_what_math_verify_says, queries, uses_a_thread_local,
             wakes]  # fmt: skip


@pytest.mark.parametrize("fn", WANT_MAIN)
def test_what_wants_the_main_thread_is_told_to_run_there_and_does(fn):
    for timeout_s in (None, 20.0):
        with pytest.raises(RewardError, match=r"reward\.run_in=main"):
            rewards_of(RewardFunction(fn, timeout_s=timeout_s))
        expected = [1.0, 1.0]
        assert rewards_of(RewardFunction(fn, run_in="main", timeout_s=timeout_s)) == expected


def test_signals_in_a_rewards_own_threads_are_noticed_wherever_it_runs():
    for run_in in ("thread", "main"):
        with pytest.raises(RewardError, match="could not set a signal") as caught:
            rewards_of(RewardFunction(hides_it_in_threads_of_its_own, run_in=run_in))
        assert ("run_in=main" in str(caught.value)) is (run_in == "thread")
    assert signal.signal.__module__ == "signal"  # as it was
    blamed = {"fine": lambda completions: time.sleep(0.1) or [1.0, 1.0],
              "hides": hides_what_math_verify_says}  # fmt: skip
    with pytest.raises(RewardError, match="the reward function hides_what_math_verify_says could"):
        rewards_of(blamed)


def test_an_error_of_another_kind_is_not_laid_on_the_thread():
    with pytest.raises(RewardError) as caught:
        rewards_of(RewardFunction(lambda completions: 1 / 0))
    assert "run_in" not in str(caught.value)


def test_event_loops_connections_and_contexts_last_in_a_thread():
    precision: contextvars.ContextVar = contextvars.ContextVar("precision")
    precision.set(0.5)
    made: list = []

    def fn(completions):
        if not made:
            made.append(sqlite3.connect(":memory:"))
        made[0].execute("SELECT 1")
        loop = asyncio.get_event_loop()
        loop.run_until_complete(asyncio.sleep(0))
        asyncio.run(asyncio.sleep(0))  # leaves the thread without a loop
        return [precision.get()] * len(completions)

    reward = RewardFunction(fn)
    for _ in range(3):
        assert rewards_of(reward) == [0.5, 0.5]


def test_threads_end_with_their_reward():
    before = threading.active_count()
    for _ in range(5):
        RewardFunction(lambda completions: [0.0])(["p"], ["r"])
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_in_the_main_thread_it_runs_after_the_evaluation_and_else_beside_it():
    threads = []

    def fn(completions):
        threads.append(threading.current_thread())
        return [1.0] * len(completions)

    rewards_of(RewardFunction(fn, run_in="main"))
    rewards_of(RewardFunction(fn))
    rewards_of({"a": RewardFunction(fn, run_in="main"), "b": fn})
    assert [thread is MAIN for thread in threads] in ([True, False, False, True],
                                                      [True, False, True, False])  # fmt: skip


def test_the_main_thread_is_refused_where_it_cannot_be_had():
    with pytest.raises(ValueError, match=r"env.timeout_s=3.0 scores each.*run_in=main"):
        rewards_of(RewardFunction(wakes, run_in="main"), timeout_s=3.0)
    found = []
    thread = threading.Thread(target=lambda: found.append(in_main(lambda: 1)))
    thread.start()
    thread.join(5)
    assert "main thread is not at hand" in str(found[0])
    with pytest.raises(ValueError, match=r"reward\.run_in='gpu': use one of thread, main, process"):
        RewardFunction(wakes, run_in="gpu")


def test_a_time_limit_in_the_main_thread_leaves_its_own_signals_free():
    rang = []

    def alarmed(completions):
        signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.05)
        return [1.0] * len(completions)

    def hangs(completions):
        time.sleep(30)

    def swallows(completions):
        try:
            time.sleep(30)
        except BaseException:
            return [1.0] * len(completions)

    before = signal.getsignal(signal.SIGVTALRM)
    assert rewards_of(RewardFunction(alarmed, run_in="main", timeout_s=20)) == [1.0, 1.0]
    assert rang == [1]
    began = time.monotonic()
    for fn in (hangs, swallows):
        with pytest.raises(RewardError, match=r"did not return within reward.timeout_s=0.2"):
            rewards_of(RewardFunction(fn, run_in="main", timeout_s=0.2))
    assert time.monotonic() - began < 10 and signal.getsignal(signal.SIGVTALRM) is before
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_an_interrupt_in_the_main_thread_ends_the_wait_of_the_others():
    def interrupted(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewards_of(RewardFunction(interrupted, run_in="main"))


# ----------------------------------------------------------------------------- processes

MODULE = """
import asyncio, os, random, signal, sys, time
from math_verify import parse, verify
calls = 0
def pid(completions):
    return [float(os.getpid())] * len(completions)
def stateful(completions):
    global calls
    calls += 1
    print("not a reply")
    return [float(calls)] * len(completions)
def right(completions, answer):
    return [float(verify(parse(a), parse(c))) for a, c in zip(answer, completions)]
def drawn(completions):
    return [random.random() for _ in completions]
def hangs(completions):
    time.sleep(600) if any("slow" in c for c in completions) else None
    return [1.0] * len(completions)
def dies(completions):
    os._exit(3) if any("bad" in c for c in completions) else None
    return [1.0] * len(completions)
def fails(completions):
    raise KeyError("lost")
def exits(completions):
    sys.exit("bye")
async def later(completion):
    await asyncio.sleep(0.01)
    return float(len(completion))
def logs(completions, log_metric):
    log_metric("seen", len(completions))
    return [None] * len(completions)
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "process_rewards.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield lambda name, **options: function(f"process_rewards:{name}", run_in="process", **options)
    sys.path.remove(str(folder))


def test_a_process_keeps_its_state_and_has_a_main_thread(mine):
    (number,) = mine("pid")(["p"], ["r"])
    assert number != os.getpid()
    counted = mine("stateful")
    assert [counted(["p"], ["r"]) for _ in range(3)] == [[1.0], [2.0], [3.0]]
    rows = [{"answer": "4"}, {"answer": "5"}]
    assert mine("right")(["p", "q"], ["4", "4"], rows) == [1.0, 0.0]
    assert mine("later")(["p", "q"], ["abc", ""]) == [3.0, 0.0]
    samples = mine("logs").scores(_samples("a", "b"))
    assert samples == [(None, {"logged_seen": 2.0})] * 2


def _samples(*texts):
    from datamodules.rewards.calling import Samples

    return Samples(["p"] * len(texts), list(texts), [{}] * len(texts))


def test_a_process_that_hangs_or_dies_is_ended_and_started_again(mine):
    slow = mine("hangs", timeout_s=0.5)
    assert slow(["p"], ["quick"]) == [1.0]
    with pytest.raises(RewardError, match=r"within reward.timeout_s=0.5 .*\n.*2 of 2"):
        slow(["p", "q"], ["quick", "slow"])
    assert slow(["p"], ["quick"]) == [1.0]
    dying = mine("dies")
    with pytest.raises(RewardError, match=r"ended by itself, with exit code 3\n.*response 2 of 2"):
        dying(["p", "q"], ["good", "bad"])
    assert dying(["p"], ["good"]) == [1.0]


@pytest.mark.parametrize(("name", "said"), [("fails", "KeyError: 'lost'"), ("exits", "SystemExit: bye")])  # fmt: skip # noqa: E501
def test_what_is_raised_in_a_process_is_said_here(mine, name, said):
    with pytest.raises(RewardError, match=f"raised {said}"):
        mine(name)(["p"], ["r"])


def test_a_process_ends_with_the_one_that_started_it(mine, tmp_path):
    program = (
        "import os, sys, threading, time\n"
        f"sys.path.insert(0, {sys.path[0]!r})\n"
        "from datamodules.rewards import function\n"
        "pid = function('process_rewards:pid', run_in='process')\n"
        "print(int(pid(['p'], ['r'])[0]), flush=True)\n"
        "threading.Thread(target=function('process_rewards:hangs', run_in='process'),"
        " args=(['p'], ['slow']), daemon=True).start()\n"
        "time.sleep(0.5); os.kill(os.getpid(), 9)\n"
    )
    started = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(int(started.stdout)):
        time.sleep(0.05)
    assert not _alive(int(started.stdout)), started.stderr


def _alive(number):
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().split()[2]
    except FileNotFoundError:
        return False


def test_what_a_process_draws_follows_the_seed(mine):
    drawn = mine("drawn")
    random.seed(1)
    first = drawn(["p"], ["r"])
    random.seed(1)
    assert drawn(["p"], ["r"]) == first != drawn(["p"], ["r"])


def test_a_process_takes_what_can_be_imported():
    for fn in (lambda completions: [0.0], functools.partial(queries)):
        with pytest.raises(ValueError, match="cannot be imported by another process"):
            RewardFunction(fn, run_in="process")


# ------------------------------------------------------------------- what it leaves behind


def draws(completions):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    return [1.0] * len(completions)


@pytest.mark.parametrize("run_in", ["thread", "main"])
def test_random_numbers_and_the_folder_are_as_they_were(run_in):
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected, folder = drawn(), os.getcwd()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    try:
        assert rewards_of(RewardFunction(draws, run_in=run_in)) == [1.0, 1.0]
        assert drawn() == expected and os.getcwd() == folder
        assert torch.get_default_dtype() == torch.float32
    finally:
        os.chdir(folder)
        torch.set_default_dtype(torch.float32)


def test_a_child_that_a_reward_forks_does_not_go_on_training(tmp_path):
    def forks(completions):
        os.fork()
        return [1.0] * len(completions)

    assert RewardFunction(forks)(["p"], ["r"]) == [1.0]
    (tmp_path / str(os.getpid())).touch()
    assert len(list(tmp_path.iterdir())) == 1


def test_scoring_alone_runs_in_the_main_thread_too():
    env = TextGenerationEnv(TOKENIZER, ["a"], reward_fn=RewardFunction(wakes, run_in="main"))
    env.reset(0)
    env.respond(torch.tensor([1, TOKENIZER.eos_token_id]))
    trajectory = Trajectory([], [], [0.0], [], True, 0.0)
    score(env, [env], [trajectory])
    assert trajectory.total_reward == 1.0
