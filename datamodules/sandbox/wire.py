"""Values as JSON, between an answer's process and its tests'.

Plain data, and the standard library's classes of values, cross over as copies of the same type.
What is left (functions, iterators, objects of the answer's own classes) each side describes by
itself: ``encode`` and ``decode`` are given what to do with the rest.

This runs inside the sandbox, with the standard library only.
"""

import importlib
import json
import sys

SCALARS = (str, int, float)
CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
VALUES = {
    "builtins.complex": lambda x: (x.real, x.imag),
    "builtins.bytearray": lambda x: (bytes(x),),
    "builtins.range": lambda x: (x.start, x.stop, x.step),
    "builtins.slice": lambda x: (x.start, x.stop, x.step),
    "collections.deque": lambda x: (list(x), x.maxlen),
    "collections.Counter": lambda x: (dict(x),),
    "collections.OrderedDict": lambda x: (dict(x),),
    "collections.defaultdict": lambda x: (x.default_factory, dict(x)),
    "decimal.Decimal": lambda x: (str(x),),
    "fractions.Fraction": lambda x: (x.numerator, x.denominator),
    "datetime.date": lambda x: (x.year, x.month, x.day),
    "datetime.datetime": lambda x: (*x.timetuple()[:6], x.microsecond, x.tzinfo),
    "datetime.time": lambda x: (x.hour, x.minute, x.second, x.microsecond, x.tzinfo),
    "datetime.timedelta": lambda x: (x.days, x.seconds, x.microseconds),
    "datetime.timezone": lambda x: (x.utcoffset(None),),
    "uuid.UUID": lambda x: (x.hex,),
    "array.array": lambda x: (x.typecode, x.tolist()),
}
"""Class -> the arguments that make the same value again."""
VIEWS = {
    "dict_keys": lambda parts: dict.fromkeys(parts).keys(),
    "dict_values": lambda parts: dict(enumerate(parts)).values(),
    "dict_items": lambda parts: dict(parts).items(),
}
CONSTANTS = {"Ellipsis": ..., "NotImplemented": NotImplemented, "NoneType": type(None)}
NUMBERS = "biufcSU"
"""Kinds of numpy's numbers and texts."""


class Unsendable(Exception):
    """A value that cannot cross over."""


def encode(value, other):
    """``value`` for JSON: scalars as they are, ``[type, part, ...]`` else.

    Args:
        other: makes such a list of what is none of the values known here.
    """
    if value is None or value is True or value is False:
        return value
    for kind in SCALARS:
        if isinstance(value, kind):  # of a subclass what it holds, whatever it says of itself
            return value if type(value) is kind else kind.__getnewargs__(value)[0]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in VALUES:
        return [name, *(encode(part, other) for part in VALUES[name](value))]
    if isinstance(value, dict):
        return ["dict", *([encode(k, other), encode(v, other)] for k, v in value.items())]
    if isinstance(value, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        parts = (encode(part, other) for part in value)
        return ["namedtuple", kind.__name__, list(kind._fields), *parts]
    for name, base in CONTAINERS.items():
        if isinstance(value, base):
            return [name, *(encode(part, other) for part in value)]
    return _rarer(value, kind, other)


def _rarer(value, kind, other):
    if kind.__name__ in VIEWS and kind.__module__ == "builtins":
        return [kind.__name__, *(encode(part, other) for part in value)]
    if isinstance(value, type) and known_class(value.__module__, value.__qualname__) is value:
        return ["class", value.__module__, value.__qualname__]
    for name, constant in CONSTANTS.items():
        if value is constant:
            return ["constant", name]
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return other(value)
    if value.dtype.kind not in NUMBERS:
        return other(value)
    shape = list(value.shape) if isinstance(value, numpy.ndarray) else None
    return ["numpy", value.dtype.str, shape, encode(value.ravel().tolist(), other)]


def decode(data, other):
    """What ``encode`` made ``data`` of.

    Args:
        other: makes a value of a list of any other kind.
    """
    if not isinstance(data, list):
        return data
    kind, *parts = data
    if kind in CONTAINERS:
        return CONTAINERS[kind](decode(part, other) for part in parts)
    if kind == "dict":
        return {decode(key, other): decode(value, other) for key, value in parts}
    if kind == "bytes":
        return bytes.fromhex(parts[0])
    if kind in VALUES:
        return _class(*kind.split("."))(*(decode(part, other) for part in parts))
    if kind in VIEWS:
        return VIEWS[kind]([decode(part, other) for part in parts])
    if kind == "namedtuple":
        name, fields, *parts = parts
        return named_tuple(name, fields)(*(decode(part, other) for part in parts))
    if kind == "class":
        found = known_class(*parts)
        if found is None:
            raise ValueError(parts)
        return found
    if kind == "constant":
        return CONSTANTS[parts[0]]
    if kind == "numpy":
        return _numpy(*parts, other)
    return other(kind, parts)


def known_class(module, name):
    """A class of builtins, or of the values known here; None for any other."""
    if module != "builtins" and f"{module}.{name}" not in VALUES:
        return None
    found = _class(module, name)
    return found if isinstance(found, type) else None


def _class(module, name):
    return getattr(importlib.import_module(module), name, None)


def named_tuple(name, fields, made={}):  # noqa: B006
    """The class of that name and fields, each made once."""
    from collections import namedtuple

    key = name, tuple(fields)
    if key not in made:
        made[key] = namedtuple(name, fields)
    return made[key]


def _numpy(dtype, shape, flat, other):
    numpy = importlib.import_module("numpy")
    array = numpy.array(decode(flat, other), dtype=dtype)
    return array[0] if shape is None else array.reshape(shape)


def restore(old, new):
    """Make the mutable ``old`` equal to ``new``, and so with what it holds, where that stays."""
    if type(old) is not type(new) or old is new:
        return
    if isinstance(old, dict):
        kept = {key: value for key, value in old.items() if key in new}
        old.clear()
        old.update({key: _restored(kept.get(key), value) for key, value in new.items()})
    elif isinstance(old, list):
        same = len(old) == len(new)
        old[:] = [_restored(*pair) for pair in zip(old, new)] if same else new  # noqa: B905
    elif hasattr(old, "clear"):  # a set, a deque, a bytearray
        old.clear()
        (getattr(old, "update", None) or old.extend)(new)


def _restored(old, new):
    if type(old) is type(new) and isinstance(old, list | dict | set):
        restore(old, new)
        return old
    return new


def send(pipe, message):
    """Write one message, a line of JSON."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.flush()
