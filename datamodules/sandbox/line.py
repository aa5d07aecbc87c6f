"""The tests' side of the pipes: what is asked of the answer's process, and what comes of it.

This runs inside the sandbox, with the standard library only.
"""

import builtins
import json
import sys

from datamodules.sandbox.proxies import Proxy, proxy_class
from datamodules.sandbox.wire import Unsendable, decode, encode, restore, send

LONGEST = 1 << 22
"""Bytes of the longest value that an answer may send."""
UNREAD = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError,
          OverflowError, ArithmeticError, ImportError, NameError)  # fmt: skip
"""What decoding raises on what no honest answer sends."""


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


class Line:
    """The pipes to the answer's process, and the objects that both know by a number."""

    def __init__(self, requests, replies):
        self.requests, self.replies = requests, replies
        self.stdout = sys.stdout
        self.functions, self.proxies, self.shared = [], {}, []
        self.exceptions, self.handles, self.known = {}, {}, {}
        self.ended = None
        """Why there is no answer any more."""
        self.unsendable = None
        """What a test would have had to hand over and cannot."""
        self.unjudged = None
        """What a test did that would have let the answer judge itself."""

    def ask(self, what, verb, *operands):
        """Have it done in the answer's process; ``what`` names it in errors.

        Raises:
            Ended: there is no answer any more.
            Unsendable: an operand cannot cross over.
        """
        try:
            if verb != "restore":
                self.share_changes(what)
            sent = operands[0] if verb == "load" else encode(list(operands), self.hand_over)
        except Unsendable as error:
            self.unsendable = f"{what} is given {error}"
            raise
        message = [verb, sent, sys.stdout is not self.stdout]
        while True:
            kind, *rest = reply = self.exchange(what, message)
            try:
                if kind == "callback":
                    message = self.run_callback(*rest)
                    continue
                if kind == "end":
                    raise StopIteration
                if kind == "value":
                    return self.received(operands, *rest)
                error = self.error(*rest)
            except UNREAD:
                self.end(f"the answer's process sent something else than a value: {reply}"[:200])
            raise error

    def exchange(self, what, message):
        """The reply to ``message``, decoded from JSON."""
        try:
            send(self.requests, message)
            reply = self.replies.readline(LONGEST)
        except OSError:
            reply = b""
        if not reply.endswith(b"\n"):
            self.end(f"the answer's process ended in {what}")
        try:
            found = json.loads(reply)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not found:
            self.end("the answer's process sent something else than a value")
        return found

    def end(self, why):
        self.ended = self.ended or why
        raise Ended(why)

    def share_changes(self, what):
        """Tell the answer of what the tests have changed in its objects' lists and dicts."""
        for entry in self.shared:
            number, value, known = entry
            now = encode(value, self.hand_over)
            if now != known:
                entry[2] = now
                self.ask(what, "restore", number, value)

    def received(self, operands, result, changed, printed, number=None):
        """The value of a reply; what the call changed in its arguments is changed in the test's."""
        value = decode(result, self.take)
        for place, now in changed:
            _, args, kwargs = operands
            restore(
                kwargs[place] if isinstance(place, str) else args[place], decode(now, self.take)
            )
        if number is not None:
            self.shared.append([number, value, encode(value, self.hand_over)])
        if printed:
            sys.stdout.write(printed)
        return value

    def error(self, text, own, builtin, args):
        """An exception of the answer's as one that the test can catch."""
        kind = self.exception(own, builtin)
        if kind is AnswerError:
            return kind(f"{own[0][2] if own else builtin}: {text}")
        try:
            return kind(*decode(args, self.take))
        except Exception:
            return kind.__new__(kind, text)

    def exception(self, own, builtin):
        """The class that stands here for one of the answer's, each made once."""
        kind = catchable(builtins, builtin) or AnswerError
        for number, module, name in reversed(own):
            if number not in self.exceptions:
                known = sys.modules.get(module) if of_the_library(module) else None
                made = catchable(known, name) or type(str(name), (kind,), {})
                self.exceptions[number] = made
            kind = self.exceptions[number]
        return kind

    def run_callback(self, number, args, kwargs):
        """Run a function of the tests for the answer; the message that tells it of the result."""
        function = self.functions[number]
        args, kwargs = decode(args, self.take), decode(kwargs, self.take)
        try:
            return ["return", encode(function(*args, **kwargs), self.hand_over)]
        except Unsendable as error:
            self.unsendable = f"the answer is given {error}"
            return ["raise", "TypeError", str(error)]
        except Exception as error:
            return ["raise", type(error).__name__, str(error)[:300]]

    def hand_over(self, value):
        """``encode``'s rest on the way to the answer.

        Raises:
            Unsendable: it is an object of the tests' own.
        """
        if isinstance(value, Proxy):
            return value._Proxy__handle
        if isinstance(value, type) and value in self.handles:
            return self.handles[value]
        place = reference(value)
        if place is not None:
            return ["reference", *place]
        own = isinstance(value, type) or type(value).__module__ == "tests"
        if not own and hasattr(value, "__next__"):
            return ["pull", self.number_of(lambda: _pulled(value))]
        if not own and callable(value):
            return ["callback", self.number_of(value)]
        kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise Unsendable(f"{kind}, which is neither plain data nor of the standard library")

    def number_of(self, function):
        self.functions.append(function)
        return len(self.functions) - 1

    def take(self, kind, parts):
        """``decode``'s rest on the way from the answer."""
        if kind == "callback":
            return self.functions[parts[0]]
        if kind == "exception":
            number, own, builtin = parts
            found = self.exception(own, builtin)
            self.handles[found] = ["kept", number]
            return found
        if kind != "kept":
            raise ValueError(kind)
        number, *about = parts
        if number not in self.proxies:
            name, can = about
            self.proxies[number] = proxy_class(str(name), tuple(can))(self, ["kept", number], name)
        return self.proxies[number]

    def named(self, name):
        """What the answer has under this name: a value, or a proxy that says that it has none."""
        proxy = proxy_class("function", ("__call__",))(self, ["name", name], name)
        try:
            found = self.ask(name, "get", proxy)
        except Exception:  # it has none: to call this says so
            return proxy
        if isinstance(found, Proxy):
            object.__setattr__(found, "_Proxy__what", name)
        return found


def catchable(module, name):
    """The exception class of that name, unless it would mean something else to a test."""
    found = getattr(module, str(name), None)
    known = isinstance(found, type) and issubclass(found, Exception)
    return found if known and not issubclass(found, WITHHELD) else None


def _pulled(iterator):
    for value in iterator:
        return True, value
    return False, None


def reference(value):
    """Module and name of a module, function or class of the standard library; None of others."""
    if isinstance(value, type(sys)):
        found, module, name = value, value.__name__, ""
    else:
        owner = getattr(value, "__objclass__", value)  # of str.upper it is str
        module, name = getattr(owner, "__module__", None), getattr(value, "__qualname__", None)
        found = sys.modules.get(module) if isinstance(module, str) else None
        for part in str(name).split("."):
            found = getattr(found, part, None)
    return (module, name) if found is value and of_the_library(module) else None


def of_the_library(module):
    """Whether a module of that name is the standard library's."""
    return isinstance(module, str) and module.split(".")[0] in sys.stdlib_module_names
