"""What a test sees of an object that stays in the answer's process.

It can call it, read and set its attributes, iterate over it. To compare it would be to let the
answer judge itself, so a test that does counts as unjudged.

This runs inside the sandbox, with the standard library only.
"""

from datamodules.sandbox.answering import FORWARDED, OPERATORS

UNARY = ("__neg__", "__abs__", "__invert__", "__round__", "__contains__")
"""Operators that cannot leave it to the other operand."""


class Proxy:
    """An object that stays in the answer's process."""

    __slots__ = ("__handle", "__line", "__what")

    def __init__(self, line, handle, what):
        for name, value in (("handle", handle), ("line", line), ("what", what)):
            object.__setattr__(self, f"_Proxy__{name}", value)

    def __getattr__(self, name):
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return self.__line.ask(f"{self.__what}.{name}", "get attribute", self, name)

    def __setattr__(self, name, value):
        self.__line.ask(f"{self.__what}.{name}", "set attribute", self, name, value)

    def __delattr__(self, name):
        self.__line.ask(f"{self.__what}.{name}", "delete attribute", self, name)

    def __str__(self):
        return self.__line.ask(self.__what, "__str__", self)

    def __repr__(self):
        return self.__line.ask(self.__what, "__repr__", self)

    def __reduce_ex__(self, protocol):
        raise TypeError(f"{self.__what} stays in the answer's process: it cannot be copied")


def _forward(special):
    def method(self, *operands):
        line, what = self._Proxy__line, self._Proxy__what
        return line.ask(what, special, self, *(() if special == "__exit__" else operands))

    return method


def _call(self, *args, **kwargs):
    return self._Proxy__line.ask(self._Proxy__what, "call", self, args, kwargs)


def _operate(special):
    binary = special not in UNARY

    def method(self, *others):
        self._Proxy__line.unjudged = f"{special} of an object of the answer's own class"
        if binary:
            return NotImplemented
        raise TypeError(f"{special}: the answer alone could say what comes of it")

    return method


def _equal(special, own):
    """Nothing but itself, as far as can be told here."""

    def method(self, other):
        if other is not self and (own or isinstance(other, Proxy)):
            self._Proxy__line.unjudged = f"{special} of an object of the answer's own class"
        return NotImplemented

    return method


def _hash(self):
    self._Proxy__line.unjudged = "hash of an object of the answer's own class"
    return object.__hash__(self)


def proxy_class(name, can, made={}):  # noqa: B006
    """A class of proxies that can what an object can, each made once."""
    if (name, can) not in made:
        methods = {special: _forward(special) for special in FORWARDED if special in can}
        unknown = [
            x for x in OPERATORS if x in can and (x != "__contains__" or "__iter__" not in can)
        ]
        methods |= {special: _operate(special) for special in unknown}
        methods |= {
            x: _equal(x, not {"__eq__", "__ne__"}.isdisjoint(can)) for x in ("__eq__", "__ne__")
        }
        methods |= {"__hash__": _hash, "__slots__": ()}
        if "__call__" in can:
            methods["__call__"] = _call
        made[name, can] = type(name, (Proxy,), methods)
    return made[name, can]
