"""The sandbox: what answers may do, and what is said where there is none."""

import shutil

import pytest

from datamodules.sandbox import Sandbox, backends, runner

# ------------------------------------------------------------------------ what works


def test_each_test_is_judged_by_itself_and_errors_say_what_was_raised(sandbox):
    program = "def half(n):\n    return [1, 3][n // 2 - 1]"
    tests = ["assert half(2) == 1", "assert half(4) == 2, 'four'", "assert half(6) == 3"]
    report = sandbox.run(program, tests, calls={"half": "half"})
    assert [(o.status, o.text) for o in report.outcomes] == [
        ("passed", ""),
        ("failed", "four"),
        ("error", "IndexError: list index out of range"),
    ]
    assert report.passed == 1 / 3 and report.ran and report.stopped is None


def test_what_a_program_needs_is_there(sandbox):
    program = (
        "import collections, dataclasses, datetime, decimal, functools, hashlib, heapq, itertools\n"
        "import math, random, re, statistics, string, threading, typing\n"
        "@dataclasses.dataclass\nclass Point:\n    x: 'int'\n"
        "def work():\n    seen = []\n"
        "    thread = threading.Thread(target=lambda: seen.append(Point(3).x))\n"
        "    thread.start(); thread.join(); random.random(); datetime.datetime.now()\n"
        "    return seen, hashlib.sha256(b'').hexdigest()[:4], list(set('abc')) == list(set('abc'))"
    )
    report = sandbox.run(program, ["assert work() == ([3], 'e3b0', True)"], calls={"work": "work"})
    assert report.passed == 1, report


def test_what_a_test_prints_is_no_verdict(sandbox):
    tests = ['print(\'["passed", ""]\')\nassert f() == 2', "print([1, 2])\nassert f() == 1"]
    report = sandbox.run("def f():\n    return 1", tests, calls={"f": "f"})
    assert [o.status for o in report.outcomes] == ["failed", "passed"]
    assert report.output == '["passed", ""]\n[1, 2]\n'


def test_a_set_has_the_same_order_every_time(sandbox):
    program = "def order():\n    return list({'a', 'b', 'c', 'd', 'e', 'f'})"
    test = "x = order()\nassert False, x"
    seen = {sandbox.run(program, [test], calls={"order": "order"}).outcomes for _ in range(4)}
    assert len(seen) == 1


@pytest.mark.parametrize(
    "value",
    [None, True, 7, -(10**30), 1.5, float("inf"), 2j, "é\ud800", b"\x00", [], [1, [2]], (1, (2,)),
     {1: "a", (2,): [3]}, {1, 2}, frozenset({3}), [None, ("x", {"y": {4}})]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_data_cross_over_with_their_types(sandbox, value):
    """Out as an argument, back as the result; equal, and of the same kind at every depth."""
    tests = [f"value = {value!r}\n" if value != float("inf") else "value = float('inf')\n"]
    tests[0] += "back = same(value)\nassert repr(back) == repr(value) and back == value"
    report = sandbox.run("def same(x):\n    return x", tests, calls={"same": "same"})
    assert report.passed == 1, report


def test_a_long_number_crosses_over(sandbox):
    test = "assert power(5000) == 10 ** 5000"
    assert sandbox.run("power = (10).__pow__", [test], calls={"power": "power"}).passed == 1


def test_other_objects_stay_inside_and_can_be_handed_back(sandbox):
    program = (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n"
        "def total(pairs):\n    return sum(p.a + p.b for p in pairs)"
    )
    tests = ["assert total([Pair(1, 2), Pair(3, 4)]) == 10", "assert Pair(1, 2) == 3"]
    report = sandbox.run(program, tests, calls={"Pair": "Pair", "total": "total"})
    assert [o.status for o in report.outcomes] == ["passed", "failed"]


def test_an_exception_that_a_test_expects_is_raised_there(sandbox):
    program = "def f(x):\n    raise (ValueError if x else type('Own', (Exception,), {}))('no')"
    expect = "try:\n    f({})\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'"
    report = sandbox.run(program, [expect.format(1), expect.format(0)], calls={"f": "f"})
    assert [o.status for o in report.outcomes] == ["passed", "error"]
    assert report.outcomes[1].text == "Own: no"


def test_a_test_that_hands_over_an_object_of_its_own_is_named_not_failed(sandbox):
    setup = "class Own:\n    pass"
    for given, called in [("Own()", "Own"), ("Own", "the class Own"), ("[Own()]", "Own")]:
        test = f"try:\n    f({given})\nexcept BaseException:\n    pass"
        with pytest.raises(ValueError, match=rf"cannot be run in a sandbox: f is given {called},"):
            sandbox.run("def f(g):\n    return 1", [test], setup=setup, calls={"f": "f"})


def test_the_setup_is_the_tests_alone_and_cannot_be_replaced_by_the_answer(sandbox):
    program = "def check(x):\n    return True\ndef f():\n    return check(0), 'helper' in globals()"
    setup = "def helper():\n    return 'helper'\ndef check(x):\n    return x == (True, False)"
    report = sandbox.run(program, ["assert check(f())"], setup=setup, calls={"f": "f"})
    assert report.passed == 1, report


def test_what_an_answer_prints_is_reported_up_to_a_length(sandbox):
    program = "import sys\nprint('out' * 1000)\nsys.stderr.write('err')\ndef f():\n    return 1"
    report = sandbox.run(program, ["assert f() == 1"], calls={"f": "f"})
    assert report.passed == 1
    assert report.output.startswith("outout") and len(report.output) == runner.KEPT_OUTPUT


# ------------------------------------------------------------------- where there is none


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "docker"}, r"env\.sandbox='docker': use one of auto, bubblewrap, landlock"),
        ({"time_limit_s": 0}, r"env\.time_limit_s=0 must be positive"),
        ({"memory_mb": 16}, r"env\.memory_mb=16"),
        ({"output_kb": -1}, r"env\.output_kb=-1"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Sandbox(**options)


def test_auto_takes_landlock_where_bwrap_is_missing(monkeypatch):
    monkeypatch.setattr(runner, "_probe", lambda backend: None)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/bwrap")
    assert runner.select_backend.__wrapped__("auto").name == "bubblewrap"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert runner.select_backend.__wrapped__("auto").name == "landlock"


def test_without_isolation_nothing_runs_and_the_remedy_is_named(monkeypatch):
    def fails(backend):
        if backend.filter:
            raise OSError("Landlock: Function not implemented")

    monkeypatch.setattr(runner, "_probe", fails)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    reasons = r"bwrap is not installed; landlock: Landlock: Function not.*apt-get.*sandbox=unsafe"
    with pytest.raises(ValueError, match=reasons):
        runner.select_backend.__wrapped__("auto")
    assert runner.select_backend.__wrapped__("unsafe").name == "unsafe"


@pytest.mark.parametrize("backend", ["auto", "bubblewrap", "landlock", "unsafe"])
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_another_system_is_refused(monkeypatch, platform, backend):
    monkeypatch.setattr(backends.sys, "platform", platform)
    with pytest.raises(ValueError, match=rf"needs Linux, this is {platform}.*WSL 2"):
        runner.select_backend.__wrapped__(backend)


def test_a_sandbox_that_leaks_is_not_used(monkeypatch):
    open_door = backends.Backend("landlock", readable=("/",))
    monkeypatch.setattr(runner, "find_backend", lambda name: open_door)
    with pytest.raises(ValueError, match="could read the files of this project"):
        runner.select_backend.__wrapped__("landlock")


def test_a_sandbox_that_does_not_start_says_why():
    broken = backends.Backend("bubblewrap", prefix=("/bin/ls", "--no-such-option"))
    with pytest.raises(OSError, match=r"did not start: .*no-such-option"):
        runner._probe(broken)
