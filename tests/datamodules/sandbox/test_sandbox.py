"""The sandbox: what answers may do, what attacks come to, and what is said where there is none."""

import ctypes
import dataclasses
import errno
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from datamodules.sandbox import Sandbox, backends, confine, harness, runner

LIMIT = 1.5
SECRET = "expected-0x5eed"
PR_SET_CHILD_SUBREAPER = 36
ATTACK = {"attack": "attack"}


@pytest.fixture(scope="module", autouse=True)
def orphans_come_here():
    """Whatever a sandbox left running would become a child of this process."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(params=backends.BACKENDS)
def sandbox(request):
    try:
        return Sandbox(request.param, time_limit_s=LIMIT, memory_mb=128, output_kb=256)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def unsafe():
    return Sandbox("unsafe", time_limit_s=30)


def children() -> set[int]:
    """Those that still run; what has ended and waits for its parent does no harm."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(stat.parent.name))
    return found


def attacked(sandbox, program, test="assert attack() is True"):
    """The report of an attack, whose test is passed if and only if it succeeds."""
    before, began = children(), time.monotonic()
    report = sandbox.run(program, [test], calls=ATTACK)
    assert time.monotonic() - began < LIMIT + 1
    deadline = time.monotonic() + 1  # the kernel takes a moment to end a whole namespace
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children() <= before
    return report


def act(body: str, imports: str = "os") -> str:
    return f"import {imports}\ndef attack():\n    {body}\n    return True\n"


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
    assert report.outcomes[1].text == "AnswerError: Own: no"


def test_a_test_that_passes_code_to_the_answer_is_named_not_failed(sandbox):
    with pytest.raises(ValueError, match=r"assert f\(len\).*f is given a builtin_function"):
        sandbox.run("def f(g):\n    return 1", ["assert f(len) == 1"], calls={"f": "f"})


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


# --------------------------------------------------------------------------- attacks

CHECKOUT = Path(runner.__file__)
REACHING_OUT = {
    "fork": act("os.fork()"),
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "spawn": act("subprocess.run(['/bin/true'], check=True)", "subprocess"),
    "exec": act("os.execv('/bin/true', ['true'])"),
    "kill parent": act("os.kill(os.getppid(), 9)"),
    "kill everything": act("os.kill(-1, 9)"),
    "kill trainer": act("os.kill(TRAINER, 0)"),
    "signal by a file's owner": act("fcntl.fcntl(2, fcntl.F_SETOWN, TRAINER)", "fcntl"),
    "limit trainer": act("resource.prlimit(TRAINER, resource.RLIMIT_CPU, (9, 9))", "resource"),
    "own session": act("os.setsid()"),
    "passwords": act("open('/etc/passwd').read()"),
    "checkout": act(f"open({str(CHECKOUT)!r}).read()"),
    "list the checkout": act(f"os.listdir({str(CHECKOUT.parent)!r})"),
    "home": act("assert sorted(os.listdir(HOME)) == ENTRIES"),
    "installed packages": act("assert os.listdir(PACKAGES)"),
    "processes": act("os.listdir('/proc/1')"),
    "own environment": act("open('/proc/self/environ').read()"),
    "loopback": act("socket.create_connection(('127.0.0.1', PORT))", "socket"),
    "listen": act("socket.socket().bind(('127.0.0.1', 0))", "socket"),
    "datagram": act("socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', PORT))",
                    "socket"),
    "abstract unix socket": act("socket.socket(socket.AF_UNIX).connect(ABSTRACT)", "socket"),
    "delete": act("os.unlink(FILE)"),
    "delete a folder": act("shutil.rmtree(os.path.dirname(FILE))", "os, shutil"),
    "overwrite": act("open(FILE, 'w').write('gone')"),
    "truncate": act("os.truncate(FILE, 0)"),
    "rename": act("os.rename(FILE, FILE + 'x')"),
    "permissions": act("os.chmod(FILE, 0)"),
    "new file": act("open('/tmp/sandbox-left-over', 'w').close()"),
    "new folder": act("os.mkdir('/tmp/sandbox-left-over')"),
    "file in memory": act("os.write(os.memfd_create('x'), b'x')"),
    "trace": act("assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0", "ctypes, os"),
    "new namespace": act("assert ctypes.CDLL(None).unshare(0x10000000) == 0", "ctypes"),
}  # fmt: skip
"""Attacks that succeed if they return True."""
HARMLESS = ("kill trainer", "passwords", "checkout", "home", "loopback", "abstract unix socket",
            "listen", "datagram", "delete", "permissions", "own environment", "fork", "processes",
            "truncate", "rename")  # fmt: skip


@pytest.fixture
def targets(tmp_path):
    """What an attack on this process finds: a file, and sockets that listen."""
    tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    abstract = f"\0rl-sandbox-{os.getpid()}"
    unix.bind(abstract)
    unix.listen()
    file = tmp_path / "kept" / "file"
    file.parent.mkdir()
    file.write_text("kept")
    names = {"TRAINER": os.getpid(), "PORT": tcp.getsockname()[1], "ABSTRACT": abstract}
    home = Path.home()
    names |= {"PACKAGES": str(backends.STDLIB / "site-packages"), "HOME": str(home)}
    names |= {"ENTRIES": sorted(os.listdir(home))}
    yield names | {"FILE": str(file)}
    tcp.close()
    unix.close()


def aimed(program, targets):
    return "".join(f"{name} = {value!r}\n" for name, value in targets.items()) + program


@pytest.mark.parametrize("name", REACHING_OUT)
def test_an_answer_cannot_reach_out(sandbox, targets, name):
    report = attacked(sandbox, aimed(REACHING_OUT[name], targets))
    assert report.passed == 0 and not report.ran, report
    assert report.outcomes[0].status == "error"
    file = Path(targets["FILE"])
    assert file.read_text() == "kept" and file.stat().st_mode & 0o400
    assert not Path("/tmp/sandbox-left-over").exists()


@pytest.mark.parametrize("name", HARMLESS)
def test_the_attacks_are_real_they_succeed_without_a_sandbox(unsafe, targets, name):
    report = unsafe.run(aimed(REACHING_OUT[name], targets), ["assert attack() is True"],
                        calls=ATTACK)  # fmt: skip
    assert report.passed == 1, report


ENDLESS = {
    "loop": "while True:\n    pass",
    "sleep": "import time\ntime.sleep(1000)",
    "in C": "9 ** 9 ** 9",
    "swallowing": "import os\nwhile True:\n    try:\n        os.fork()\n"
    "    except BaseException:\n        pass",
    "in a thread that outlives": "import threading\ndef spin():\n    while True: pass\n"
    "threading.Thread(target=spin).start()\nimport time\ntime.sleep(1000)",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_answer_is_ended_at_its_limit(sandbox, name):
    report = attacked(sandbox, ENDLESS[name])
    assert report.stopped == "time" and report.passed == 0 and not report.ran
    assert report.outcomes[0].text == "over its time limit"


def test_tests_that_were_passed_before_a_limit_still_count(sandbox):
    program = "def attack(x):\n    while x:\n        pass\n    return 5"
    tests = ["assert attack(0) == 5", "assert attack(1) == 5", "assert attack(0) == 5"]
    report = sandbox.run(program, tests, calls=ATTACK)
    assert report.passed == 1 / 3 and report.stopped == "time" and not report.ran


@pytest.mark.parametrize(
    "body", ["bytearray(100 << 30)", "held = []\n    while True: held.append(bytearray(1 << 22))"]
)
def test_memory_is_limited(sandbox, body):
    report = attacked(sandbox, act(body))
    assert report.passed == 0 and report.outcomes[0].text.startswith("MemoryError")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_printing_a_gigabyte_ends_the_answer(sandbox, stream):
    program = f"import sys\nfor _ in range(1024):\n    sys.{stream}.write('x' * (1 << 20))\n" + act(
        ""
    )
    report = attacked(sandbox, program)
    assert report.stopped == "output" and report.passed == 0 and not report.ran
    assert len(report.output) <= runner.KEPT_OUTPUT


def test_a_gigabyte_as_a_result_is_refused(sandbox):
    report = attacked(sandbox, "def attack():\n    return 'x' * (1 << 25)", "assert attack()")
    assert report.passed == 0


EXITS = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "in the call": act("os._exit(0)"),
    "exit in the call": act("sys.exit(0)", "sys"),
    "at exit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
    "closing all files": "import os\nos.closerange(0, 64)\ndef attack():\n    return True",
    "abort": "import os\nos.abort()",
    "crash": "import ctypes\nctypes.string_at(0)",
}


@pytest.mark.parametrize("name", EXITS)
def test_to_exit_early_passes_nothing(sandbox, name):
    report = attacked(sandbox, EXITS[name])
    assert report.passed == 0 and not report.ran and report.stopped is None, report


FORGERIES = {
    "prints verdicts": "print('[\"passed\", \"\"]\\n' * 9, flush=True)",
    "writes verdicts everywhere": (
        "import os\nfor fd in range(64):\n    try:\n"
        "        os.write(fd, b'[\"started\", \"\"]\\n' + b'[\"passed\", \"\"]\\n' * 9)\n"
        "    except OSError:\n        pass\nos._exit(0)"
    ),
    "sends values unasked": (
        "import os\nfor fd in range(64):\n    try:\n"
        "        os.write(fd, b'[\"value\", true]\\n' * 99)\n"
        "    except OSError:\n        pass"
    ),
    "sends no value": (
        "import os\nfor fd in range(64):\n    try:\n        os.write(fd, b'[[[\\n' * 99)\n"
        "    except OSError:\n        pass"
    ),
    "equals everything": (
        "class Any:\n    __eq__ = lambda s, o: True\n    __hash__ = None\n"
        "    __ne__ = lambda s, o: False\ndef attack():\n    return Any()"
    ),
    "a text that equals everything": (
        "class Any(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\n"
        "def attack():\n    return Any('x')"
    ),
    "replaces assert": (
        "import builtins, sys\nbuiltins.AssertionError = Exception\nbuiltins.compile = None\n"
        "builtins.exec = lambda *a: None\nsys.modules['json'].dumps = lambda *a: '[\"passed\"]'\n"
        "def attack():\n    return True"
    ),
    "raises AssertionError": "def attack():\n    raise AssertionError",
    "searches its memory": (
        "import gc, os, sys\ndef attack():\n    for start in gc.get_objects():\n"
        "        for found in [start, *gc.get_referents(start)]:\n"
        "            if isinstance(found, str) and found.startswith('expected-'):\n"
        "                return found\n"
        "    frame = sys._getframe()\n    while frame:\n"
        "        for name, value in frame.f_locals.items():\n"
        "            if 'expected-' in str(value) and name != 'found':\n"
        "                return value\n"
        "        frame = frame.f_back\n    return str(sys.argv) + str(os.environ)"
    ),
    "reads every file": (
        "import os\ndef attack():\n    for fd in range(64):\n        try:\n"
        "            os.set_blocking(fd, False)\n            text = os.read(fd, 1 << 16).decode()\n"
        "        except (OSError, ValueError):\n            continue\n"
        "        if 'expected-' in text:\n            return text[text.index('expected-'):][:15]"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(sandbox, name):
    report = attacked(sandbox, FORGERIES[name], f"assert attack() == {SECRET!r}")
    assert report.passed == 0, report


def test_the_right_answer_passes_where_forgeries_fail(sandbox):
    program = f"def attack():\n    return {SECRET!r}"
    assert attacked(sandbox, program, f"assert attack() == {SECRET!r}").passed == 1


@pytest.mark.parametrize("act", ["open('/etc/passwd').read()", "os.fork()"])
def test_the_tests_themselves_are_confined(sandbox, act):
    """A downloaded file of problems brings code, too."""
    test = f"f()\nimport os\n{act}"
    report = sandbox.run("def f():\n    pass", [test], calls={"f": "f"})
    assert report.outcomes[0].status == "error"


@pytest.mark.parametrize(
    "name",
    ["kill trainer", "limit trainer", "passwords", "checkout", "home", "own environment",
     "installed packages", "loopback", "abstract unix socket", "delete", "overwrite", "new file"],
)  # fmt: skip
def test_bubblewrap_holds_without_the_filter_too(targets, name):
    try:
        sandbox = Sandbox("bubblewrap", time_limit_s=LIMIT)
    except ValueError as error:
        pytest.skip(str(error))
    sandbox.backend = dataclasses.replace(sandbox.backend, filter=False)
    assert attacked(sandbox, aimed(REACHING_OUT[name], targets)).outcomes[0].status == "error"
    assert Path(targets["FILE"]).read_text() == "kept"


def test_even_unsafe_leaves_no_processes_behind():
    sandbox = Sandbox("unsafe", time_limit_s=LIMIT)
    program = "import subprocess\nsubprocess.run(['/bin/sleep', '60'])"
    assert attacked(sandbox, program).stopped == "time"


# ------------------------------------------------------------------ the filter by itself


def verdict(machine, number, *arguments, audit=None):
    """What the seccomp program says to a system call."""
    words = {0: number, 4: audit or confine.ARCHITECTURES[machine][1]}
    words |= {16 + 8 * i: value for i, value in enumerate(arguments)}
    accumulator, position, program = 0, 0, confine.filter_program(machine)
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        if code == confine.RETURN:
            return operand
        if code == confine.LOAD:
            accumulator = words.get(operand, 0)
        else:
            equal = accumulator == operand if code == confine.EQUAL else accumulator & operand
            position += if_true if equal else if_false


@pytest.mark.parametrize(
    ("machine", "read", "openat", "clone", "socket", "kill"),
    [("x86_64", 0, 257, 56, 41, 62), ("aarch64", 63, 56, 220, 198, 129)],
)
def test_the_filter_on_both_machines(machine, read, openat, clone, socket, kill):
    refused, allowed = confine.REFUSE | errno.EPERM, confine.ALLOW
    assert verdict(machine, read) == allowed
    assert verdict(machine, socket) == verdict(machine, kill) == refused
    assert verdict(machine, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == allowed
    for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE):
        assert verdict(machine, openat, 0, 0, flag) == refused
    assert verdict(machine, clone, confine.CLONE_THREAD | 0x100) == allowed
    assert verdict(machine, clone, 17) == refused
    assert verdict(machine, confine.CLONE3) == confine.REFUSE | errno.ENOSYS
    assert verdict(machine, read, audit=1) == confine.KILL


def test_every_system_call_is_named_once():
    for column in (0, 1):
        numbers = [n[column] for n in confine.ALLOWED.values()]
        numbers += [entry[1][column] for entry in confine.CHECKED]
        known = [n for n in numbers if n != confine.NONE]
        assert len(known) == len(set(known)) > 50


def test_no_step_of_the_filter_jumps_past_its_end():
    for machine in confine.ARCHITECTURES:
        program = confine.filter_program(machine)
        for position, (_, if_true, if_false, _) in enumerate(program):
            assert position + 1 + max(if_true, if_false) <= len(program)
            assert max(if_true, if_false) < 256


@pytest.mark.parametrize(
    "data", [["nothing", 1], ["bytes", "zz"], ["complex", 1, 2, 3], ["dict", 1]]
)
def test_what_encode_never_writes_is_not_decoded(data):
    with pytest.raises((KeyError, ValueError, TypeError)):
        harness.decode(data, harness.Opaque)


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
