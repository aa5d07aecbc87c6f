"""Whether a chat template's text holds all that its conversation says.

Templates are free to leave things out, and many do: tools that they do not know, the calls of an
assistant, messages of a role that they have no branch for. What is compared are letters and digits
alone, as templates trim, escape and lay out what they print.
"""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys under which rows hold what an assistant thought before it spoke."""
TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""What published models write around their thoughts."""


def tool_name(tool: Mapping[str, Any]) -> str | None:
    """What a tool, or the tool of a call, is called."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


def thoughts_in(message: Mapping[str, Any]) -> str:
    """What an assistant thought, wherever its message holds it."""
    for key in THOUGHTS:
        if isinstance(message.get(key), str):
            return message[key]
    content = message.get("content") or ""
    for opens, closes in TAGS:
        before, closed, _ = content.partition(closes)
        if closed and message["role"] == "assistant":
            return before.partition(opens)[2] or before
    return ""


def spoken(message: Mapping[str, Any]) -> str:
    """What a message says, an assistant's thoughts left out."""
    content = message.get("content") or ""
    if message["role"] == "assistant":
        for _, closes in TAGS:
            content = content.rpartition(closes)[2]
    return content


def first_of_turn(messages: Sequence[Mapping[str, Any]]) -> int:
    """Where what follows the user's last message begins."""
    asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return asked[-1] + 1 if asked else 0


def earlier_thoughts(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many turns before the last have thoughts: templates of reasoning models leave them out,
    as their models were trained."""
    return sum(bool(thoughts_in(m).strip()) for m in messages[: first_of_turn(messages)])


def lost_in(
    text: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What the conversation says and its text does not, in words; earlier thoughts may go."""
    said = [
        (spoken(m), f"what the {m['role']} says in message {n}")
        for n, m in enumerate(messages, start=1)
    ]
    said.sort(key=lambda part: -len(part[0]))  # a short one may also stand within a longer one
    lost = [] if _stand_as_they_are([part for part, _ in said], text) else _lost_words(said, text)
    letters = functools.cache(lambda: _letters(text))
    for what, value in (*_parts(messages), *_tools(tools)):
        if value.strip() not in text and _found(value, letters(), text) is None:
            lost.append(what)
    if any(repr(shown) in text for shown in _shown(messages)):
        lost.append("the arguments of a call as JSON")
    return lost


def _stand_as_they_are(parts: Sequence[str], text: str) -> bool:
    """Whether each part stands in ``text``, letter by letter: the quick way, and the usual case."""
    for part in map(str.strip, parts):
        if part not in text:
            return False
        text = text.replace(part, "\0", 1) if part else text
    return True


def _lost_words(said: Sequence[tuple[str, str]], text: str) -> list[str]:
    rest, lost = _letters(text), []
    for content, what in said:
        form = _found(content, rest, text)
        if form is None:
            lost.append(what)
        elif form:
            rest = rest.replace(form, "\0", 1)
    return lost


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Everything else that messages say, each with its name."""
    turn = first_of_turn(messages)
    for number, message in enumerate(messages, start=1):
        if number > turn:
            yield f"the thoughts in message {number}", thoughts_in(message)
        for call in message.get("tool_calls", ()):
            function = call.get("function", call)
            name = function["name"]
            yield f"the call of {name!r} in message {number}", name
            for value in _values(arguments_of(function)):
                yield f"the arguments of the call of {name!r} in message {number}", value


def _tools(tools: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for tool in tools:
        yield f"the tool {tool_name(tool)!r}", tool_name(tool) or ""


def _shown(messages: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Arguments that Python writes otherwise than JSON."""
    for message in messages:
        for call in message.get("tool_calls", ()):
            arguments = arguments_of(call.get("function", call))
            written = json.dumps(arguments, ensure_ascii=False)
            if isinstance(arguments, Mapping) and repr(arguments) != written:
                yield arguments


def arguments_of(function: Mapping[str, Any]) -> Any:
    """A call's arguments as the values they are; OpenAI's API writes them as JSON text."""
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments


def _values(value: Any) -> Iterator[str]:
    """Names and values of arguments, as text."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield str(name)
            yield from _values(part)
    elif isinstance(value, list):
        for part in value:
            yield from _values(part)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _found(content: str, letters: str, text: str) -> str | None:
    """The letters of ``content`` as they stand in ``letters``; None where they do not."""
    if not _letters(content):
        content = content.strip()
        return "" if content in text or json.dumps(content)[1:-1] in text else None
    for form in (content, json.dumps(content, ensure_ascii=False), json.dumps(content)):
        if (form := _letters(form)) in letters:
            return form
    return None


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())
