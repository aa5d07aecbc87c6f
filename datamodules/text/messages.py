"""Messages and tools as rows write them down, checked; whatever a message says stays in it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.kept import THOUGHTS, tool_name

Message = dict[str, Any]
"""``role``, and what else the row has: ``content``, ``tool_calls``, ``reasoning_content``, ..."""
Schema = dict[str, Any]
"""A tool as a JSON schema."""
_SAYS = ("content", "tool_calls", *THOUGHTS)


def as_messages(value: Any) -> list[Message]:
    """``value`` as a conversation.

    Keys without a value are left out: a Parquet column gives each message the keys of all. Parts
    of text are joined.

    Raises:
        ValueError: it is none, or holds something else than text.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ValueError(_wanted(value))
    messages = []
    for number, given in enumerate(value, start=1):
        if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
            raise ValueError(_wanted(value))
        message = {name: _filled(part) for name, part in given.items() if part is not None}
        if not message.get("tool_calls"):
            message.pop("tool_calls", None)
        if "function_call" in message:  # as OpenAI wrote a call before it had several
            message.setdefault("tool_calls", [{"function": message.pop("function_call")}])
        if "content" in message:
            message["content"] = _text(message["content"], f"message {number}")
        if not any(name in message for name in _SAYS):
            if "content" not in given:
                raise ValueError(_wanted(value))
            message["content"] = ""
        if "tool_calls" in message:
            message["tool_calls"] = _calls(message["tool_calls"], f"message {number}")
        messages.append(message)
    return messages


def as_tools(value: Any) -> tuple[Schema, ...]:
    """A row's ``tools``: JSON schemas, or JSON text of them; none where it has none.

    Raises:
        ValueError: it is something else.
    """
    tools = _parsed(value) if isinstance(value, str) and value.strip() else value or ()
    if isinstance(tools, Mapping):
        tools = [tools]
    if isinstance(tools, Sequence) and not isinstance(tools, str):
        tools = [_parsed(tool) if isinstance(tool, str) else tool for tool in tools]
        if all(isinstance(tool, Mapping) and tool_name(tool) for tool in tools):
            return tuple(_filled(tool) for tool in tools)
    raise ValueError(f"tools must be JSON schemas of functions, each with a name, not {value!r}")


def _wanted(value: Any) -> str:
    return (
        f"a prompt must be text or a list of messages with 'role' and 'content', not {value!r:.300}"
    )


def _filled(value: Any) -> Any:
    """``value`` without the keys that have no value, at any depth."""
    if isinstance(value, Mapping):
        return {name: _filled(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_filled(part) for part in value]
    return value


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"the content of {where} must be text or parts of text, not {content!r}")
    said = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(text, str) or kind not in ("text", "str"):
            raise ValueError(
                f"the content of {where} holds a part of the type {kind!r}: only text can be"
                " learned from; leave such rows out"
            )
        said.append(text)
    return "".join(said)


def _calls(calls: Any, where: str) -> list[Mapping[str, Any]]:
    """The calls, each with its ``function``; some rows leave that level out."""
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"tool_calls of {where} must be a list of calls, not {calls!r}")
    if nameless := [call for call in calls if not tool_name(call)]:
        raise ValueError(f"a call in tool_calls of {where} has no function's name: {nameless[0]!r}")
    return [
        call if "function" in call else {"type": "function", "function": call} for call in calls
    ]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tools are no JSON ({error}): {text[:80]!r}") from error
