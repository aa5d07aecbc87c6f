"""``async def`` rewards: many at once, tried again, kept on disk."""

import asyncio
import functools
import sqlite3
import sys
import time

import pytest

from datamodules.rewards.cache import RewardCache
from datamodules.rewards.functions import RewardError, RewardFunction
from datamodules.rewards.invoking import is_passing, wait_s


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("datamodules.rewards.invoking.wait_s", lambda error, tries: 0.001)


class Busy:
    """Counts how many calls are in it at once."""

    def __init__(self):
        self.now = self.most = self.calls = 0

    async def judge(self, prompt, completion):
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.02)
        self.now -= 1
        return float(len(completion))

    async def batch(self, completions, **kwargs):
        return [await self.judge("", text) for text in completions]

    def sync(self, completions):
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.02)
        self.now -= 1
        return [float(len(text)) for text in completions]


TEXTS = ["a" * i for i in range(20)]
EXPECTED = [float(i) for i in range(20)]


@pytest.mark.parametrize(("method", "concurrency", "most"), [
    ("judge", None, 16), ("judge", 5, 5), ("judge", 1, 1), ("batch", None, 1), ("batch", 7, 7),
    ("sync", None, 1), ("sync", 6, 6),
])  # fmt: skip
def test_as_many_are_judged_at_once_as_was_asked_for(method, concurrency, most):
    busy = Busy()
    reward = RewardFunction(getattr(busy, method), concurrency=concurrency, timeout_s=30)
    assert reward(["p"] * 20, TEXTS) == EXPECTED and busy.most == most


class Refused(Exception):
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status_code = status


class Flaky:
    """Fails ``times`` times at each text before it answers."""

    def __init__(self, error, times):
        self.error, self.times, self.met = error, times, {}

    def _meet(self, text):
        self.met[text] = self.met.get(text, 0) + 1
        if "bad" in text and self.met[text] <= self.times:
            raise self.error

    async def one(self, completion):
        self._meet(completion)
        return 1.0

    def many(self, completions):
        for text in completions:
            self._meet(text)
        return [1.0] * len(completions)


PASSING = [ConnectionResetError("gone"), TimeoutError("late"), Refused(429), Refused(503)]


@pytest.mark.parametrize("method", ["one", "many"])
@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_may_pass_is_tried_again_as_often_as_was_said(method, error):
    flaky = Flaky(error, 2)
    reward = RewardFunction(getattr(flaky, method), retries=2)
    assert reward(["p", "p"], ["good", "bad"]) == [1.0, 1.0] and flaky.met["bad"] == 3
    again = Flaky(error, 3)
    with pytest.raises(RewardError, match=type(error).__name__):
        RewardFunction(again.one, retries=2)(["p", "p"], ["good", "bad"])
    assert again.met["bad"] == 3


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("k"), Refused(401), OSError("disk")])
def test_what_does_not_pass_is_not_tried_again(error):
    flaky = Flaky(error, 1)
    with pytest.raises(RewardError, match=rf"{type(error).__name__}.*\n.*response 2 of 2"):
        RewardFunction(flaky.one, retries=5)(["p", "p"], ["good", "bad"])
    assert flaky.met["bad"] == 1


def test_waiting_grows_and_heeds_what_the_server_asks_for(monkeypatch):
    monkeypatch.undo()
    assert [0.25 * 2**n <= wait_s(ValueError(), n) <= 0.5 * 2**n for n in range(4)] == [True] * 4
    error = Refused(429)
    error.response = type("Response", (), {"headers": {"retry-after": "7"}, "status_code": 429})()
    assert wait_s(error, 0) == 7.0 and is_passing(error)
    error.response.headers = {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}
    assert wait_s(error, 0) <= 0.5 and wait_s(error, 30) == 60.0


@pytest.mark.parametrize("method", ["one", "many"])
def test_a_call_that_hangs_names_its_response(method):
    async def one(completion):
        await asyncio.sleep(30 if completion == "slow" else 0)
        return 1.0

    def many(completions):
        time.sleep(3 if "slow" in completions else 0)
        return [1.0]

    fn = {"one": one, "many": many}[method]
    reward = RewardFunction(fn, timeout_s=0.2, concurrency=2, retries=0)
    with pytest.raises(RewardError, match=r"timeout_s=0.2 seconds\n.*response 2 of 2"):
        reward(["p", "p"], ["quick", "slow"])


def test_a_coroutine_of_a_function_that_is_none_is_awaited_too():
    async def later(completions):
        return [1.0] * len(completions)

    async def stream(completions):
        for _ in completions:
            yield 2.0

    assert RewardFunction(lambda completions: later(completions))(["p"], ["r"]) == [1.0]
    assert RewardFunction(stream)(["p", "p"], ["r", "r"]) == [2.0, 2.0]


def test_decorators_around_a_coroutine_do_not_make_it_another():
    async def judged(completion):
        await asyncio.sleep(0)
        return 1.0

    @functools.wraps(judged)
    def returns_it(*args, **kwargs):
        return judged(*args, **kwargs)

    @functools.wraps(judged)
    def awaits_it(*args, **kwargs):
        return 2.0

    assert RewardFunction(returns_it)(["p"] * 3, ["a", "b", "c"]) == [1.0] * 3
    assert RewardFunction(awaits_it)(["p"] * 3, ["a", "b", "c"]) == [2.0] * 3


def test_sessions_live_as_long_as_their_event_loop():
    loops = []

    async def fn(completion):
        loops.append(asyncio.get_running_loop())
        return 1.0

    reward = RewardFunction(fn)
    reward(["p"] * 2, ["a", "b"])
    reward(["p"] * 2, ["a", "b"])
    assert len({id(loop) for loop in loops}) == 1 and not loops[0].is_closed()


# ------------------------------------------------------------------------------- cache


def cached(tmp_path, asked, reward=None, **options):
    async def fn(completion, answer):
        asked.append((completion, answer))
        return len(completion) if reward is None else reward(completion)

    fn.__qualname__ = "fn"
    return RewardFunction(fn, cache=str(tmp_path / "made" / "rewards.db"), **options)


def test_what_was_judged_is_not_judged_again_in_a_later_run_either(tmp_path):
    asked: list = []
    rows = [{"answer": "4", "id": 1}, {"answer": "5", "id": 2}, {"answer": "4", "id": 3}]
    first = cached(tmp_path, asked)
    assert first(["p"] * 3, ["aa", "b", "ccc"], rows) == [2.0, 1.0, 3.0]
    assert cached(tmp_path, asked)(["p"] * 3, ["aa", "b", "ccc"], rows) == [2.0, 1.0, 3.0]
    assert len(asked) == 3
    others = [rows[0] | {"id": 9}, rows[1] | {"answer": "6"}, rows[2]]  # no id is asked for
    assert first(["q"] * 3, ["aa", "b", "d"], others) == [2.0, 1.0, 1.0]
    assert asked[3:] == [("b", "6"), ("d", "4")]


def test_that_none_applies_is_kept_and_errors_are_not(tmp_path):
    asked: list = []

    def reward(text):
        return {"none": None, "nan": float("nan")}[text]

    rows = [{"answer": ""}] * 2
    for _ in range(2):
        with pytest.raises(RewardError, match="returned nan"):
            cached(tmp_path, asked, reward)(["p"] * 2, ["none", "nan"], rows)
    assert asked == [("none", ""), ("nan", ""), ("nan", "")]
    assert cached(tmp_path, asked, reward)(["p"], ["none"], rows[:1]) == [None]


def test_another_name_another_source_another_cache(tmp_path, monkeypatch):
    for _ in range(2):
        (tmp_path / "judged.py").write_text(f"SCALE = {len(list(tmp_path.iterdir()))}\n")
    keys = set()
    for scale in (1, 2):
        path = tmp_path / "cached_judge.py"
        path.write_text(f"SCALE = {scale}\nasync def fn(completion):\n    return SCALE\n")
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("cached_judge", None)
        import linecache

        import cached_judge  # type: ignore[import-not-found]

        linecache.checkcache()
        for name in ("a", "b"):
            keys.add(RewardCache(str(tmp_path / "c.db"), cached_judge.fn, name)._identity)
    assert len(keys) == 4


def test_a_cache_is_refused_where_it_cannot_be_one(tmp_path):
    (tmp_path / "text.db").write_text("this is no database at all, it is text " * 20)
    for path in (tmp_path / "text.db", tmp_path):
        with pytest.raises(ValueError, match=r"reward\.cache=.* cannot be used"):
            RewardFunction(lambda completion: 1.0, cache=str(path))
    with pytest.raises(ValueError, match=r"is given many at once: set reward\.concurrency"):
        RewardFunction(lambda completions: 1.0, cache=str(tmp_path / "a.db"))
    with pytest.raises(ValueError, match=r"reward\.concurrency=0"):
        RewardFunction(lambda completion: 1.0, concurrency=0)
    with pytest.raises(ValueError, match=r"reward\.concurrency=2 .*run_in=main"):
        RewardFunction(lambda completion: 1.0, concurrency=2, run_in="main")


def test_two_processes_may_write_at_once(tmp_path):
    path = str(tmp_path / "c.db")
    caches = [RewardCache(path, len, "a"), RewardCache(path, len, "a")]
    calls = [((), {"completion": str(i)}) for i in range(50)]
    for cache in caches:
        cache.keep(calls, [1.0] * 50)
    assert caches[0].look_up(calls) == ([1.0] * 50, [])
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT COUNT(*) FROM rewards").fetchone() == (50,)
