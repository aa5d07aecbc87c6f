"""What attacks on the sandbox come to."""

import builtins
import ctypes
import dataclasses
import os
import socket
import time
from pathlib import Path

import pytest

from datamodules.sandbox import Sandbox, backends, confine, runner

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
    assert time.monotonic() - began < sandbox.time_limit_s + 1
    deadline = time.monotonic() + 1  # the kernel takes a moment to end a whole namespace
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert children() <= before
    return report


def act(body: str, imports: str = "os") -> str:
    return f"import {imports}\ndef attack():\n    {body}\n    return True\n"


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
    sandbox.time_limit_s = 20.0  # a busy machine takes its time to fill it
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


EXCEPTIONS = sorted(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
)
ITERATING = (
    "assert all(map(lambda x: attack(x) == 7, [1, 2]))",
    "assert not any(map(lambda x: attack(x) != 7, [1, 2]))",
    "assert [*map(attack, [1])] == []",
    "for value in iter(lambda: attack(1), 7):\n    assert False",
    "assert next(map(attack, [1]), True) is True",
    "assert sum(map(attack, [1])) == 0",
    "assert all(attack(x) == 7 for x in [1, 2])",
    "a, = [*zip([1], map(attack, [1]))] or [0]\nassert a == 0",
)


@pytest.mark.parametrize("test", ITERATING)
def test_no_exception_of_an_answer_means_to_a_test_that_all_went_well(sandbox, test):
    names = ["StopIteration", "StopAsyncIteration", "GeneratorExit", "ValueError", "Own"]
    program = (
        "import builtins\nclass Own(StopIteration):\n    pass\n"
        f"kinds = [getattr(builtins, name, Own) for name in {names}]\n"
        "def attack(x):\n    raise kinds.pop()\n"
    )
    report = sandbox.run(program, [test] * len(names), calls=ATTACK)
    assert [o.status for o in report.outcomes] == ["error"] * len(names), report


def test_every_builtin_exception_of_an_answer_is_an_error(sandbox):
    """Whatever it needs to be made of; and the tests after it go on."""
    raising = "import builtins\ndef attack(name):\n    kind = getattr(builtins, name)\n"
    raising += "    raise kind.__new__(kind, 'x', [ValueError()])"
    tests = [f"assert all(map(attack, [{name!r}]))" for name in EXCEPTIONS]
    report = sandbox.run(raising, tests, calls=ATTACK)
    assert {o.status for o in report.outcomes} == {"error"} and report.stopped is None
    assert len(EXCEPTIONS) > 60


ENDING = ("os._exit(0)", "os.closerange(0, 64)", "signal.alarm(1); x()",
          "sys.settrace(lambda *a: os._exit(0)); x()", "ctypes.string_at(0)")  # fmt: skip


@pytest.mark.parametrize("how", ENDING)
def test_a_bare_except_does_not_take_the_end_of_a_process_for_an_exception(sandbox, how):
    program = "import ctypes, os, signal, sys\ndef x():\n    while True: len('')\n"
    program += f"def attack():\n    {how}\n"
    test = "try:\n    attack()\nexcept:\n    pass\nelse:\n    assert False"
    report = attacked(sandbox, program, test)
    assert report.outcomes[0].status == "error" and "ended in attack" in report.outcomes[0].text
    fair = sandbox.run("def attack():\n    return 1 / 0", [test], calls=ATTACK)
    assert fair.passed == 1


THREADS = """
import threading
def attack(most):
    threading.stack_size(32768)
    held, done = [], threading.Event()
    try:
        while len(held) < most:
            held.append(threading.Thread(target=done.wait, daemon=True))
            held[-1].start()
    except RuntimeError as error:
        return len(held) - 1, str(error)
    done.set()
    for thread in held:
        thread.join()
    return len(held), ''
"""


def test_threads_are_limited_at_one_time(sandbox):
    """An answer may start many, one after the other; the 65th that is to live beside 64 fails."""
    tests = ["assert attack(60) == (60, '')"] * 5
    tests += ['assert attack(4000) == (64, "can\'t start new thread")']
    tests += ["assert attack(1)[1]  # those are still there"]
    report = sandbox.run(THREADS, tests, calls=ATTACK)
    assert report.passed == 1, report


def test_threads_made_past_python_are_limited_too(sandbox):
    """By the system call itself, each on a stack of a few bytes."""
    program = (
        "import ctypes\nstacks = []  # a thread may begin after attack has returned\n"
        "def attack():\n    libc = ctypes.CDLL(None, use_errno=True)\n"
        "    flags, made = 0x10f00 | 0x40000, 0\n"
        "    for _ in range(500):\n        stacks.append(ctypes.create_string_buffer(1 << 16))\n"
        "        top = ctypes.addressof(stacks[-1]) + (1 << 16) - 64\n"
        "        if libc.clone(ctypes.cast(libc.sleep, ctypes.c_void_p), ctypes.c_void_p(top),"
        " flags, ctypes.c_void_p(9)) < 0:\n            return made, ctypes.get_errno()\n"
        "        made += 1\n    return made, 0"
    )
    report = sandbox.run(program, ["made = attack()\nassert made == (64, 11), made"], calls=ATTACK)
    assert report.passed == 1, report


def test_where_threads_cannot_be_counted_there_are_none(monkeypatch, sandbox):
    """As where another supervisor watches this process already."""
    source = Path(confine.__file__).read_text()
    blind = source.replace("NEW_LISTENER, header)", "NEW_LISTENER << 9, header)")
    assert blind != source
    sources = [
        (n, compile(blind, n, "exec", optimize=2) if n.endswith(".confine") else code)
        for n, code in runner._sources()
    ]
    monkeypatch.setattr(runner, "_sources", lambda: tuple(sources))
    test = 'assert attack(3) == (0, "can\'t start new thread")'
    assert sandbox.run(THREADS, [test], calls=ATTACK).passed == 1


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
