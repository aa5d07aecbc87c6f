"""Tools that a model may call: plain functions, and calls as the model wrote them."""

import dataclasses
import datetime
import decimal
import enum
import fractions
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from jsonschema import Draft202012Validator
from transformers.utils import get_json_schema

from datamodules.environments.call_forms import calls_in, named_call

MAX_ANSWER = 2000
"""Characters of a tool's answer that the model is shown."""
DEEPEST = 100
"""Lists in lists that a tool may return."""
_FORM = '<tool_call>{"name": "TOOL", "arguments": {"ARGUMENT": "VALUE"}}</tool_call>'


class ToolError(Exception):
    """What the model did wrong, in words for the model."""


def as_call(name: str, **arguments: Any) -> str:
    """A call as a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Toolbox:
    """Functions that a model may call by name, with arguments that its schema allows.

    Args:
        tools: with type hints, and a docstring that has ``Args:`` for each argument; or with an
            attribute ``schema``, as ``get_json_schema`` gives it. They return what has a text
            (``answer_text``).
    """

    def __init__(self, tools: Sequence[Callable[..., Any]]) -> None:
        self.schemas = [getattr(tool, "schema", None) or get_json_schema(tool) for tool in tools]
        self._tools: dict[str, tuple[Callable[..., Any], Draft202012Validator]] = {}
        for tool, schema in zip(tools, self.schemas, strict=True):
            exact = schema["function"]["parameters"] | {"additionalProperties": False}
            self._tools[schema["function"]["name"]] = (tool, Draft202012Validator(exact))
        functions = [schema["function"] for schema in self.schemas]
        self._parameters = {f["name"]: f["parameters"].get("properties", {}) for f in functions}

    def calls_in(self, text: str) -> list[str]:
        """The calls of a response, in whatever form a model writes them (``call_forms``); where
        there are no tools, nothing is one."""
        return calls_in(text, self._parameters) if self._tools else []

    def answer(self, text: str) -> tuple[str, bool]:
        """The answer to a call for the model to read, and whether the call was in order."""
        try:
            answer, fine = self.call(text), True
        except ToolError as error:
            answer, fine = f"Error: {error}", False
        if len(answer) > MAX_ANSWER:
            answer = f"{answer[:MAX_ANSWER]} ... ({len(answer)} characters)"
        return answer, fine

    def call(self, text: str) -> str:
        """What the tool says to a call as the model wrote it.

        Raises:
            ToolError: no such call can be made, or the tool raised.
            TypeError: the tool returned something that has no text.
        """
        name, arguments = parsed(text)
        if name not in self._tools:
            raise ToolError(f"there is no tool {name!r:.80}; there are {sorted(self._tools)}")
        tool, validator = self._tools[name]
        try:
            for problem in validator.iter_errors(arguments):
                raise ToolError(f"{name}: {problem.message[:200]}")
        except RecursionError:  # its message shows the value
            raise ToolError(f"{name}: the arguments are nested too deeply") from None
        try:
            answer = tool(**arguments)
        except Exception as error:  # the model is to read it, and may do better
            raise ToolError(f"{name}: {type(error).__name__}: {error}") from error
        return answer_text(answer, name)


def answer_text(value: Any, tool: str) -> str:
    """What a tool returned, as text: text as it is, other values as JSON, in which dates are ISO
    8601, sets lists, and decimal numbers text.

    Raises:
        TypeError: it has no text; names the tool.
    """
    try:
        plain = _plain(value)
        return plain if isinstance(plain, str) else json.dumps(plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"the tool {tool!r} returned a {type(value).__name__}, which cannot be shown to the"
            f" model ({error}): return text, numbers, lists or dictionaries"
        ) from error


def _plain(value: Any, depth: int = 0) -> Any:
    """``value``, that is so deep in another, as what JSON holds."""
    if depth > DEEPEST:  # not left to Python's limit, which may lie beyond the end of the stack
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    part_of = partial(_plain, depth=depth + 1)
    match value:
        case enum.Enum():
            return part_of(value.value)
        case None | bool() | int() | float():
            return value
        case str() | decimal.Decimal() | uuid.UUID() | PurePath():
            return str(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta() | fractions.Fraction() | complex():
            return str(value)
        case bytes() | bytearray():
            return bytes(value).decode(errors="backslashreplace")
        case Mapping():
            return {str(part_of(key)): part_of(part) for key, part in value.items()}
        case set() | frozenset():
            return sorted(map(part_of, value), key=lambda part: (type(part).__name__, str(part)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: part_of(getattr(value, f.name)) for f in dataclasses.fields(value)}
    for method in ("tolist", "model_dump", "_asdict", "to_dict"):  # NumPy, torch, pydantic, pandas
        if callable(found := getattr(value, method, None)) and not isinstance(value, type):
            return part_of(found())
    if isinstance(value, Iterable):
        return list(map(part_of, value))
    raise TypeError(f"a {type(value).__name__} has no text")


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call as the model wrote it.

    Raises:
        ToolError: it is none.
    """
    try:
        call = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the call is no valid JSON ({error}): write {_FORM}") from error
    if isinstance(call, list) and len(call) == 1:  # as SmolLM2 was taught to write it
        call = call[0]
    named = named_call(call)
    if named is None and isinstance(call, dict) and set(call) <= {"name", "id", "type"}:
        named = call.get("name"), {}
    if named is None or not isinstance(named[0], str) or not isinstance(named[1], dict):
        raise ToolError(f"the call must have the form {_FORM}")
    return named


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")
