"""Runs an answer against its tests in a process of its own, and reads what came of it."""

import functools
import hashlib
import json
import marshal
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datamodules.checks import is_finite
from datamodules.sandbox.backends import (
    BACKENDS,
    Backend,
    find_backend,
    interpreter,
    package_folders,
)

BOOT = """
import marshal, os, sys, types
size, blob = int(sys.argv.pop()), b""
while len(blob) < size:
    blob += os.read(0, size - len(blob))
sources, options = marshal.loads(blob)
for name, source in sources:
    module = sys.modules[name] = types.ModuleType(name)
    exec(source, module.__dict__)
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], own, module)
for name, _ in sources:
    del sys.modules[name]
module.main(options)
"""
SOURCES = ("confine", "wire", "answering", "proxies", "line", "testing", "harness")
"""The files that run inside, each after those that it imports."""
TIME_LIMIT_S = 5.0
MEMORY_MB = 512
VALUED = ("passed", "failed", "unjudged")
"""Where the answer gave a value."""
KEPT_OUTPUT = 2000
"""Characters of an answer's output that a report shows."""


@dataclass(frozen=True)
class Outcome:
    """How one test went."""

    status: str
    """``passed``; ``failed``: the answer gave a wrong value; ``error``: it raised, or was ended;
    ``broken``: the test itself cannot be run here; ``unjudged``: it leaves the verdict to the
    answer, by an operator of the answer's own class."""
    text: str = ""
    """What was raised or said."""


@dataclass(frozen=True)
class Report:
    """How one answer did in its tests."""

    outcomes: tuple[Outcome, ...]
    """One a test, in their order."""
    stopped: str | None
    """The limit that ended it: ``time`` or ``output``; None if none did."""
    output: str
    """The beginning of what it printed to standard output and error."""

    @property
    def passed(self) -> float:
        """Share of the tests that it passed, 0 to 1."""
        return sum(o.status == "passed" for o in self.outcomes) / len(self.outcomes)

    @property
    def ran(self) -> bool:
        """Whether it gave a value, right or wrong, in some test, and kept to its limits."""
        return self.stopped is None and any(o.status in VALUED for o in self.outcomes)


class Sandbox:
    """Runs answers, any number of them at once, from any thread.

    What it does not cover: faults of the kernel itself, timing as a side channel, what ``stat``
    tells of other files with ``landlock``, and an answer that looks up the tests' values in the
    prompt or guesses them. An answer that draws random numbers may score differently next time.

    Args:
        backend: ``auto`` (bubblewrap, else landlock), ``bubblewrap``, ``landlock`` or ``unsafe``.
        time_limit_s: seconds of wall time that one answer has for all its tests, the start of its
            processes included.
        memory_mb: MiB of address space for an answer, and for its tests.
        output_kb: KiB that an answer may print before it is ended.

    Raises:
        ValueError: an unknown backend, a limit too low, or a machine without isolation.
    """

    def __init__(
        self,
        backend: str = "auto",
        *,
        time_limit_s: float = TIME_LIMIT_S,
        memory_mb: int = MEMORY_MB,
        output_kb: int = 1024,
    ) -> None:
        limits = {"time_limit_s": time_limit_s, "memory_mb": memory_mb, "output_kb": output_kb}
        for name, value in limits.items():
            if not is_finite(value) or value <= 0:
                raise ValueError(f"env.{name}={value} must be positive")
        if memory_mb < 64:
            raise ValueError(f"env.memory_mb={memory_mb}: an interpreter alone needs 64")
        self.time_limit_s, self.memory_mb, self.output_kb = time_limit_s, memory_mb, output_kb
        self.backend = select_backend(backend)

    def run(
        self,
        program: str,
        tests: Sequence[str],
        *,
        setup: str = "",
        calls: Mapping[str, str] | None = None,
        packages: Iterable[str] = (),
    ) -> Report:
        """Run ``tests`` against ``program``.

        Args:
            tests: statements, ``assert f(2) == 4``, run in order in one scope.
            setup: what the tests need besides the answer, run before them in the same scope.
            calls: name in the tests -> name of the answer's function that it stands for.
            packages: those of ``PACKAGES`` that the tests import; the answer may, too.

        Raises:
            ValueError: no tests, or a test that cannot be run (see ``Outcome``).
            OSError: the sandbox did not start.
        """
        if not tests:
            raise ValueError("tests is empty: an answer needs at least one")
        job = {"program": program, "tests": list(tests), "setup": setup, "calls": dict(calls or {})}
        backend = self._backend_with(tuple(sorted(packages)))
        report = _run(backend, job, self.time_limit_s, self.memory_mb, self.output_kb)
        for test, outcome in zip(tests, report.outcomes, strict=True):
            if outcome.status == "broken":
                raise ValueError(f"the test {test!r} cannot be run in a sandbox: {outcome.text}")
        return report

    def _backend_with(self, packages: tuple[str, ...]) -> Backend:
        return with_packages(self.backend, packages) if packages else self.backend


@functools.cache
def with_packages(backend: Backend, packages: tuple[str, ...]) -> Backend:
    """The same backend, in which these packages can be imported."""
    return replace(find_backend(backend.name, packages), filter=backend.filter, packages=packages)


@functools.cache
def select_backend(name: str) -> Backend:
    """The backend of that name, tried out; ``auto``: the first that works.

    Raises:
        ValueError: there is none of that name, or none works here.
    """
    if name not in ("auto", *BACKENDS, "unsafe"):
        known = ", ".join(("auto", *BACKENDS, "unsafe"))
        raise ValueError(f"env.sandbox={name!r}: use one of {known}")
    reasons = []
    for candidate in BACKENDS if name == "auto" else (name,):
        try:
            backend = find_backend(candidate)
            _probe(backend)
        except OSError as error:
            reasons.append(f"{candidate}: {error}")
        else:
            return backend
    raise ValueError(
        f"env.sandbox={name!r} cannot run the programs that a model writes on this machine"
        f" ({'; '.join(reasons)}): install bubblewrap (apt-get install bubblewrap), or, on another"
        " system than Linux, use a Linux container or WSL 2; on Linux env.sandbox=unsafe runs them"
        " with all your rights"
    )


def _probe(backend: Backend) -> None:
    """Start it once, and look whether this very file can be read from inside."""
    peek = f"def peek():\n    open({__file__!r}).read(1)\n    return True\n"
    job = {"program": peek, "tests": ["assert peek()"], "setup": "", "calls": {"peek": "peek"}}
    report = _run(backend, job, 30.0, MEMORY_MB, 64)
    if report.stopped:
        raise OSError(f"a trial run ended by its {report.stopped} limit")
    if backend.filter and report.outcomes[0].status == "passed":
        raise OSError("a trial run could read the files of this project")


def sandbox_version() -> str:
    """Another one as soon as the code that judges answers is another."""
    return hashlib.sha256(marshal.dumps(_sources())).hexdigest()


@functools.cache
def _sources() -> tuple:
    """Compiled here once, so that no sandboxed interpreter spends its time on it."""
    folder, (room, _, _) = Path(__file__).parent, __name__.rpartition(".")
    packages = [(name, compile("", name, "exec")) for name in ("datamodules", room)]
    files = [(f"{room}.{n}", (folder / f"{n}.py").read_text()) for n in SOURCES]
    return (*packages, *((n, compile(text, n, "exec", optimize=2)) for n, text in files))


def _run(
    backend: Backend, job: dict, time_limit_s: float, memory_mb: int, output_kb: int
) -> Report:
    options = {
        "memory_bytes": memory_mb << 20,
        "cpu_s": int(time_limit_s) + 1,
        "readable": backend.readable and list(backend.readable),
        "filter": backend.filter,
        "packages": {name: package_folders(name)[0] for name in backend.packages},
    }
    start = marshal.dumps((_sources(), options))
    # -S, -s and an empty environment: no packages; one hash seed: sets have one order.
    python = [interpreter(), "-S", "-s", "-B", "-u", "-c", BOOT, str(len(start))]
    process = subprocess.Popen(
        [*backend.prefix, *python],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"},
        cwd="/",
        start_new_session=True,
    )
    try:
        stopped, verdicts, printed = _watch(
            process, start + json.dumps(job).encode(), time_limit_s, output_kb << 10
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its number is taken until it is waited for
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
    output = printed[:KEPT_OUTPUT].decode(errors="replace")
    lines = [json.loads(line) for line in verdicts.splitlines() if line.endswith(b"]")]
    if not lines and stopped is None:
        raise OSError(f"it did not start: {output.strip()[-500:]}")
    outcomes = [Outcome(*line) for line in lines[1:]]
    missing = Outcome("error", f"over its {stopped} limit" if stopped else "the tests broke off")
    outcomes += [missing] * (len(job["tests"]) - len(outcomes))
    return Report(tuple(outcomes), stopped, output)


def _watch(
    process: subprocess.Popen, given: bytes, time_limit_s: float, most_output: int
) -> tuple[str | None, bytes, bytes]:
    """Feed it, and read until the tests are done or a limit is reached.

    Returns:
        The limit that was reached, the verdicts and the output.
    """
    deadline = time.monotonic() + time_limit_s
    verdicts, printed = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ, verdicts)
        selector.register(process.stderr, selectors.EVENT_READ, printed)
        while process.stdout in (key.fileobj for key in selector.get_map().values()):
            ready = selector.select(deadline - time.monotonic())
            if time.monotonic() >= deadline:
                return "time", bytes(verdicts), bytes(printed)
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    given = _feed(process, given)
                    done = not given
                else:
                    chunk = os.read(key.fd, 1 << 16)
                    key.data.extend(chunk)
                    done = not chunk
                if done:
                    selector.unregister(key.fileobj)
            if len(printed) > most_output:
                return "output", bytes(verdicts), bytes(printed)
    return None, bytes(verdicts), bytes(printed)


def _feed(process: subprocess.Popen, given: bytes) -> bytes:
    """Write what fits; the rest is returned, nothing once it is over."""
    try:
        given = given[os.write(process.stdin.fileno(), given) :]
    except BrokenPipeError:
        given = b""
    if not given:
        process.stdin.close()
    return given
