"""Inside the sandbox: an answer in one process, its tests in another.

The tester runs the test statements, which the answer's process never sees: it is asked for single
calls, sends values back as plain data, and can say nothing about whether a test has passed. The
two are parted before the first test is read, so there is no secret to find in the answer's memory,
and no pipe of the verdicts among its files.

Like ``confine.py`` this runs in an interpreter of its own, with the standard library only.
"""

import builtins
import json
import os
import sys
import types

LONGEST = 1 << 22
"""Bytes of the longest value that an answer may send."""
SCALARS = (bool, int, float, str)


class Unsendable(Exception):
    """A test passes something to the answer that is not plain data."""


class Ended(BaseException):
    """The answer's process is gone; no ``except Exception`` of a test holds this up."""


class AnswerError(Exception):
    """The answer raised an exception that a test cannot be given as it is."""


WITHHELD = (
    AssertionError,  # would be the test's own
    StopIteration,  # to whatever iterates over calls it means that all went well: all(map(f, xs))
    StopAsyncIteration,
    UnicodeDecodeError,  # cannot be made of a text
    UnicodeEncodeError,
    UnicodeTranslateError,
    getattr(builtins, "BaseExceptionGroup", AssertionError),  # new in Python 3.11
)


class Opaque:
    """An object that stays in the answer's process; a test can only hand it back."""

    def __init__(self, number: int) -> None:
        self.number = number


def encode(value, opaque):
    """``value`` for JSON: scalars as they are, ``[type, part, ...]`` else; ``opaque`` the rest."""
    if value is None:
        return None
    for kind in SCALARS:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if isinstance(value, dict):
        return ["dict", *([encode(k, opaque), encode(v, opaque)] for k, v in value.items())]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *(encode(part, opaque) for part in value)]
    return ["opaque", opaque(value)]


def decode(data, opaque):
    """What ``encode`` made ``data`` of."""
    if not isinstance(data, list):
        return data
    kind, *parts = data
    if kind == "complex":
        return complex(*parts)
    if kind == "bytes":
        return bytes.fromhex(parts[0])
    if kind == "opaque":
        return opaque(parts[0])
    if kind == "dict":
        return {decode(key, opaque): decode(value, opaque) for key, value in parts}
    kinds = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
    return kinds[kind](decode(part, opaque) for part in parts)


def send(pipe, message):
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()


def answer(requests, replies):
    """Run the program, then the calls that are asked for."""
    kept = []

    def keep(value):
        kept.append(value)
        return len(kept) - 1

    module = types.ModuleType("answer")
    sys.modules["answer"] = module  # dataclasses look their module up

    def load(program):
        exec(compile(program, "answer.py", "exec"), module.__dict__)

    for line in requests:
        name, args, kwargs = decode(json.loads(line), kept.__getitem__)
        function = load if name is None else module.__dict__.get(name)
        try:
            if function is None:
                raise NameError(f"the answer defines no {name}")
            reply = ["value", encode(function(*args, **kwargs), keep)]
        except BaseException as error:  # SystemExit too
            reply = ["error", type(error).__name__, str(error)[:300]]
        send(replies, reply)


class Line:
    """The pipes to the answer's process."""

    def __init__(self, requests, replies):
        self.requests, self.replies = requests, replies
        self.ended = None
        """Why there is no answer any more."""

    def ask(self, what, message):
        """The reply to ``message``, decoded from JSON.

        Raises:
            Ended: there is none.
        """
        try:
            send(self.requests, message)
            reply = self.replies.readline(LONGEST)
        except OSError:
            reply = b""
        if not reply.endswith(b"\n"):
            self.end(f"the answer's process ended in {what}")
        try:
            return json.loads(reply)
        except (ValueError, RecursionError):
            self.end("the answer's process sent something else than a value")

    def end(self, why):
        self.ended = self.ended or why
        raise Ended(why)


class Remote:
    """A function of the answer, called in the answer's process."""

    def __init__(self, name, line):
        self.name, self.line = name, line

    def __call__(self, *args, **kwargs):
        def handed_back(value):
            if isinstance(value, Opaque):
                return value.number
            raise Unsendable(f"{self.name} is given a {type(value).__name__}: only plain data can")

        request = encode((self.name, args, kwargs), handed_back)
        reply = self.line.ask(self.name or "its program", request)
        try:
            kind, *rest = reply
            if kind == "value":
                return decode(rest[0], Opaque)
            name, text = rest
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            self.line.end("the answer's process sent something else than a value")
        cause = getattr(builtins, str(name), None)
        known = isinstance(cause, type) and issubclass(cause, Exception)
        if known and not issubclass(cause, WITHHELD):
            raise cause(text)
        raise AnswerError(f"{name}: {text}")


def test(job, line, report):
    """Run the job's tests one after the other; ``report(status, text)`` after each."""
    try:
        Remote(None, line)(job["program"])
    except (Exception, Ended) as error:
        for _ in job["tests"]:
            report("error", f"{type(error).__name__}: {error}"[:300])
        return
    names = {name: Remote(called, line) for name, called in job["calls"].items()}
    scope = {"__name__": "tests"}
    exec(compile(job["setup"], "setup", "exec"), scope)
    scope.update(names)
    for source in job["tests"]:
        try:
            exec(compile(source, "test", "exec"), scope)
        except AssertionError as error:
            report("failed", str(error)[:300])
        except Unsendable as error:
            report("broken", str(error))
        except (Exception, Ended) as error:
            report("error", f"{type(error).__name__}: {error}"[:300])
        else:
            if line.ended:  # a bare ``except`` of the test took that for an exception it wants
                report("error", f"Ended: {line.ended}")
            else:
                report("passed", "")


def main(confine, options):
    """Standard input: the job. Standard output: ``started``, then a line a test.

    ``confine`` is the module of that name: in the sandbox there is no package to import it from.
    """
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    confine.limit(options["memory_bytes"], options["cpu_s"])
    if options["readable"] is not None:
        confine.hide_files(options["readable"])
    listener = confine.watch_threads() if options["filter"] else None
    if listener is not None:
        if os.fork() == 0:
            confine.end_with_parent()
            os.closerange(0, 2)
            confine.count_threads(listener)
        os.close(listener)
    to_answer, to_tester, nothing = os.pipe(), os.pipe(), os.pipe()
    os.close(nothing[1])
    if os.fork() == 0:
        os.dup2(nothing[0], 0)
        os.dup2(2, 1)
        for fd in (to_answer[1], to_tester[0], nothing[0]):
            os.close(fd)
        confine.end_with_parent()
        if options["filter"]:
            confine.filter_system_calls(threads=listener is not None)
        answer(os.fdopen(to_answer[0], "rb"), os.fdopen(to_tester[1], "wb"))
        os._exit(0)
    for fd in (to_answer[0], to_tester[1], nothing[0]):
        os.close(fd)
    if options["filter"]:
        confine.filter_system_calls(threads=listener is not None)
    verdicts = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a test prints is no verdict
    send(verdicts, ["started", ""])
    job = json.loads(sys.stdin.buffer.read())
    requests, replies = os.fdopen(to_answer[1], "wb"), os.fdopen(to_tester[0], "rb")
    test(job, Line(requests, replies), lambda *verdict: send(verdicts, verdict))
    os._exit(0)
