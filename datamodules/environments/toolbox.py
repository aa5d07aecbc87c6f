"""Tools that a model may call: plain functions, and calls as the model wrote them."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from transformers.utils import get_json_schema

MAX_ANSWER = 2000
"""Characters of a tool's answer that the model is shown."""
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_FORM = '{"name": "TOOL", "arguments": {"ARGUMENT": "VALUE"}}'


class ToolError(Exception):
    """What the model did wrong, in words for the model."""


def calls_in(text: str) -> list[str]:
    """What stands in the tags of each call of a response, the last of which may lack its end."""
    return _CALL.findall(text)


def as_call(name: str, **arguments: Any) -> str:
    """A call as a model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


class Toolbox:
    """Functions that a model may call by name, with arguments that its schema allows.

    Args:
        tools: with type hints, and a docstring that has ``Args:`` for each argument. They return
            text or what JSON can hold.
    """

    def __init__(self, tools: Sequence[Callable[..., Any]]) -> None:
        self.schemas = [get_json_schema(tool) for tool in tools]
        self._tools: dict[str, tuple[Callable[..., Any], Draft202012Validator]] = {}
        for tool, schema in zip(tools, self.schemas, strict=True):
            exact = schema["function"]["parameters"] | {"additionalProperties": False}
            self._tools[schema["function"]["name"]] = (tool, Draft202012Validator(exact))

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
        """
        name, arguments = _parsed(text)
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
        return answer if isinstance(answer, str) else json.dumps(answer)


def _parsed(text: str) -> tuple[str, dict[str, Any]]:
    try:
        call = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ToolError(f"the call is no valid JSON ({error}): write {_FORM}") from error
    if isinstance(call, list) and len(call) == 1:  # as SmolLM2 was taught to write it
        call = call[0]
    arguments = call.get("arguments", {}) if isinstance(call, dict) else None
    if not isinstance(arguments, dict) or not isinstance(call.get("name"), str):
        raise ToolError(f"the call must have the form {_FORM}")
    return call["name"], arguments


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")
