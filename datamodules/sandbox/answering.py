"""The answer's process: it runs the program, and does with its objects what the tests ask for.

Nothing here decides a verdict, and nothing that a test expects is ever sent here. The answer can
change all of this, and gains nothing by it.

This runs inside the sandbox, with the standard library only.
"""

import importlib
import json
import operator
import sys
import types

from datamodules.sandbox.wire import decode, encode, restore, send

FORWARDED = (
    "__call__", "__len__", "__iter__", "__next__", "__getitem__", "__setitem__", "__delitem__",
    "__bool__", "__int__", "__float__", "__index__", "__enter__", "__exit__", "__instancecheck__",
)  # fmt: skip
"""What a test may do with an object of the answer, if its class can."""
OPERATORS = (
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__", "__add__"),
    *("__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__"),
    *("__floordiv__", "__mod__", "__pow__", "__matmul__", "__and__", "__or__", "__xor__"),
    *("__neg__", "__abs__", "__invert__", "__round__"),
)
"""What would let the answer say whether it is right: a test that needs it cannot be judged."""
VERBS = {
    "get": lambda x: x,
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "get attribute": getattr,
    "set attribute": setattr,
    "delete attribute": delattr,
    "__len__": len,
    "__iter__": iter,
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    "__bool__": bool,
    "__int__": int,
    "__float__": float,
    "__index__": operator.index,
    "__str__": str,
    "__repr__": repr,
    "__enter__": lambda x: type(x).__enter__(x),
    "__exit__": lambda x: type(x).__exit__(x, None, None, None),
    "__instancecheck__": lambda kind, value: isinstance(value, kind),
}
MUTABLE = ("list", "dict", "set", "bytearray", "deque", "Counter", "OrderedDict", "defaultdict")


class Answer:
    """The program's names, and the objects that the tests hold by a number."""

    def __init__(self, requests, replies):
        self.requests, self.replies = requests, replies
        self.kept, self.numbers = [], {}  # the objects, and by which number the tests know them
        self.module = types.ModuleType("answer")
        sys.modules["answer"] = self.module  # dataclasses look their module up

    def serve(self):
        """Do what is asked for, until a callback's result comes, which is returned."""
        for line in self.requests:
            message = json.loads(line)
            if message[0] in ("return", "raise"):
                return message
            try:
                reply = self.reply(*message)
            except BaseException as error:  # SystemExit too
                reply = self.raised(error)
            send(self.replies, reply)
        return ["raise", "EOFError", "the tests are over"]

    def reply(self, verb, operands, capture=False):
        if verb == "load":
            exec(compile(operands, "answer.py", "exec"), self.module.__dict__)
            return ["value", None, [], ""]
        values = decode(operands, self.other)
        if verb == "restore":
            number, new = values
            return ["value", restore(self.kept[number], new), [], ""]
        if verb == "__next__":
            try:
                return ["value", encode(next(*values), self.keep), [], ""]
            except StopIteration:
                return ["end"]
        result, printed = _captured(verb, values) if capture else (VERBS[verb](*values), "")
        reply = ["value", encode(result, self.keep), [], printed]
        if verb == "call":
            reply[2] = self.changed(operands, values)
        elif verb == "get attribute" and type(result).__name__ in MUTABLE:
            reply.append(self.keep(result)[1])  # the tests may change it in place
        return reply

    def raised(self, error):
        """The reply that tells of it: its text, its own classes, and its builtin one with what
        makes one."""
        try:
            args = encode(list(error.args), self.keep)
        except Exception:
            args = None
        own, builtin = self.lineage(type(error))
        return ["error", str(error)[:300], own, builtin, args]

    def lineage(self, kind):
        """An exception's own classes, each with the number it has here, and its builtin one."""
        kinds = [k for k in kind.__mro__ if issubclass(k, BaseException)]
        [builtin, *_] = (k.__name__ for k in kinds if k.__module__ == "builtins")
        own = [k for k in kinds if k.__module__ != "builtins"]
        for k in own:
            self.numbers.setdefault(k, len(self.numbers))
        return [[self.numbers[k], k.__module__, k.__name__] for k in own], builtin

    def changed(self, operands, values):
        """The arguments of a call that it has changed: how to find each, and what it is now."""
        _, (_, *before), (_, *before_named) = operands[1:]
        _, args, kwargs = values
        places = [(i, sent, now) for i, (sent, now) in enumerate(zip(before, args))]  # noqa: B905
        places += [(name, sent, kwargs[name]) for name, sent in before_named]
        changed = []
        for place, sent, now in places:
            if type(now).__name__ in MUTABLE:
                after = encode(now, self.keep_or_name)
                if after != sent:
                    changed.append([place, after])
        return changed

    def keep(self, value):
        """Hold on to it, and say what a test can do with it."""
        if isinstance(value, Callback):
            return ["callback", value.number]
        self.kept.append(value)
        kind = type(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", len(self.kept) - 1, *self.lineage(value)]
        can = [name for name in (*FORWARDED, *OPERATORS) if _defines(kind, name)]
        return ["kept", len(self.kept) - 1, kind.__name__, can]

    def keep_or_name(self, value):
        number = self.numbers.get(id(value))
        return self.keep(value) if number is None else ["kept", number]

    def other(self, kind, parts):
        if kind == "kept":
            value = self.kept[parts[0]]
            self.numbers[id(value)] = parts[0]
            return value
        if kind == "name":
            if parts[0] not in self.module.__dict__:
                raise NameError(f"the answer defines no {parts[0]}")
            return self.module.__dict__[parts[0]]
        if kind == "reference":
            found = importlib.import_module(parts[0])
            return operator.attrgetter(parts[1])(found) if parts[1] else found
        return {"callback": Callback, "pull": Pulled}[kind](self, parts[0])

    def call_back(self, number, args, kwargs):
        given = [encode(list(args), self.keep), encode(kwargs, self.keep)]
        send(self.replies, ["callback", number, *given])
        kind, *rest = self.serve()
        if kind == "return":
            return decode(rest[0], self.other)
        name, text = rest
        cause = getattr(sys.modules["builtins"], name, RuntimeError)
        raise cause(text) if issubclass(cause, Exception) else RuntimeError(text)


class Callback:
    """A function of the tests, which is run there."""

    def __init__(self, answer, number):
        self.answer, self.number = answer, number

    def __call__(self, *args, **kwargs):
        return self.answer.call_back(self.number, args, kwargs)


class Pulled(Callback):
    """An iterator of the tests."""

    def __iter__(self):
        return self

    def __next__(self):
        more, value = self()
        if not more:
            raise StopIteration
        return value


def _defines(kind, name):
    found = getattr(kind, name, None)
    return found is not None and found is not getattr(object, name, None)


def _captured(verb, values):
    """The result, and what was printed on the way to it."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = VERBS[verb](*values)
    return result, printed.getvalue()
