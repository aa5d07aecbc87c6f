"""Prompts of rows as people write them down: TRL's, Alpaca's, ShareGPT's, Orca's, OpenAI's.

- text or messages under ``prompt``, ``question`` and the like;
- ``instruction``, with or without ``input`` (Alpaca): the user's message, the two joined by a line;
- ``messages`` or ``conversations``, of ``role``/``content`` or of ``from``/``value`` (ShareGPT), or
  the ``input`` that OpenAI exports, which holds ``messages`` and ``tools``;
- beside them ``system``, ``history`` (pairs of a question and its answer), ``tools`` and
  ``chat_template_kwargs``.

What adds a message makes a conversation of a text.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from datamodules.text.columns import HISTORY, PROMPTS, SYSTEM, Cells, says_nothing
from datamodules.text.messages import Message, Schema, as_tools
from datamodules.text.prompts import Content, Prompt, as_prompt

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
}
"""What ShareGPT's and LLaMA-Factory's rows call a role."""
CALLS = ("function_call", "tool_call")
CONVERSATIONS = ("messages", "conversations", "conversation")
WRITTEN = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
"""How messages begin that a table holds as text."""


def content_of(value: Any, name: str) -> Content:
    """Text, or messages of any of the forms above.

    Raises:
        ValueError: it is neither; names the column.
    """
    if isinstance(value, str) and WRITTEN.match(value):
        value = _written(value, name)
    if isinstance(value, list | tuple):
        value = [_message(item, name) if isinstance(item, Mapping) else item for item in value]
    try:
        return as_prompt(value).content
    except ValueError as error:
        if isinstance(value, str | list | tuple) and "must be text or" not in str(error):
            raise ValueError(f"{name!r}: {error}") from None
        raise ValueError(
            f"{name!r} must be text or a list of messages with 'role' and 'content', not"
            f" {value!r:.300}"
        ) from None


def column_of(cells: Cells) -> str | None:
    """Where a row's prompt stands, be it empty: by its columns, not by what they hold, so that
    a gap is not filled with something else."""
    return next((name for name in PROMPTS if name in cells), None)


def prompt_of(cells: Cells, *, chat: bool = False) -> Prompt | None:
    """The prompt of a row that has it in a column; None if there is none, or nothing in it.

    Args:
        chat: make a conversation of a text.

    Raises:
        ValueError: what stands there is no prompt.
    """
    column = column_of(cells)
    if column is None or (value := cells.take(column)) is None:
        return None
    if column == "input" and isinstance(value, Mapping) and "messages" in value:  # OpenAI's
        return _exported(value)
    content = content_of(value, cells.names[column])
    if (column == "instruction" or cells.given("input")) and column != "input":
        content = _joined(content, cells.take("input"), cells)
    return framed(content, cells, chat=chat or column == "instruction")


def framed(content: Content, cells: Cells, *, chat: bool = False) -> Prompt:
    """A prompt with what ``system``, ``history`` and ``tools`` add to it.

    Raises:
        ValueError: they cannot be added.
    """
    history, tools = turns(cells.take(*HISTORY)), as_tools(cells.take("tools"))
    system, own = cells.take(*SYSTEM), _template_options(cells)
    if system is not None and not isinstance(system, str):
        raise ValueError(f"the column {cells.names['system']!r} must be text, not {system!r:.80}")
    if isinstance(content, str):
        if not (chat or history or tools or system or own):
            return Prompt(content)
        content = [{"role": "user", "content": content}]
    elif history:
        raise ValueError("a history stands beside messages, which have theirs: remove one of them")
    return Prompt(with_system([*history, *content], system), own, tools)


def _template_options(cells: Cells) -> dict[str, Any]:
    """A row's own ``chat_template_kwargs``, as a prompt has them."""
    name = "chat_template_kwargs"
    own = cells.take(name)
    if own is not None and not isinstance(own, Mapping):
        raise ValueError(f"the column {name!r} must hold options of the template, not {own!r:.80}")
    own = {key: value for key, value in (own or {}).items() if value is not None}
    return {name: own} if own else {}


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """``messages``, with the system message first.

    Raises:
        ValueError: they have another one.
    """
    if system is None:
        return messages
    own = messages[0] if messages and messages[0]["role"] in ("system", "developer") else None
    if own is None:
        return [{"role": "system", "content": system}, *messages]
    if own.get("content") != system:
        raise ValueError(
            f"the column 'system' says {system[:40]!r}, and the system message of the conversation"
            f" {str(own.get('content'))[:40]!r}: remove one of them"
        )
    return messages


def makes_conversations(cells: Cells) -> bool:
    """Whether a row adds a message to its prompt's text, so that a file's prompts are all
    conversations."""
    added = (*SYSTEM, *HISTORY, "tools", "chat_template_kwargs")
    return any(cells.peek(name) is not None for name in added)


def turns(history: Any) -> list[Message]:
    """Earlier turns: messages, or pairs of a question and its answer.

    Raises:
        ValueError: they are something else.
    """
    if says_nothing(history):
        return []
    if isinstance(history, str) and history.lstrip().startswith("["):
        history = _written(history, "history")
    if isinstance(history, list | tuple):
        if all(isinstance(item, Mapping) for item in history):
            content = content_of(history, "history")
            assert isinstance(content, list), "a list of messages stays one"
            return content
        if all(isinstance(i, list | tuple) and [type(t) for t in i] == [str, str] for i in history):
            roles = ("user", "assistant")
            pairs = [zip(roles, pair, strict=True) for pair in history]
            return [{"role": role, "content": text} for pair in pairs for role, text in pair]
    raise ValueError(
        "the column 'history' must hold messages, or pairs of a question and its answer, not"
        f" {history!r:.80}: mend it, or leave it out by data.columns={{history: null}}"
    )


def _exported(value: Mapping[str, Any]) -> Prompt:
    content = content_of(value["messages"], "input.messages")
    rest = sorted(set(value) - {"messages", "tools", "parallel_tool_calls"})
    if rest:
        raise ValueError(f"'input' holds {', '.join(rest)} beside messages and tools: remove it")
    return Prompt(content, tools=as_tools(value.get("tools")))


def _joined(content: Content, more: Any, cells: Cells) -> Content:
    if more is None:
        return content
    if not (isinstance(content, str) and isinstance(more, str)):
        raise ValueError(
            f"the column {cells.names['input']!r} goes with a prompt of text: {more!r:.80}"
        )
    return f"{content}\n{more}"


def _message(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A message of ``role`` and ``content``, whatever the row calls them."""
    if "from" in given and "role" not in given:
        if "value" not in given:
            raise ValueError(f"{name!r}: a message has 'from' and no 'value': {given!r:.80}")
        role = str(given["from"]).lower()
        if role not in ROLES:
            raise ValueError(
                f"{name!r}: a message is from {given['from']!r}, known are {', '.join(ROLES)}"
            )
        rest = {k: v for k, v in given.items() if k not in ("from", "value")}
        said = {"content": given["value"]}
    elif "role" not in given:
        return given
    else:
        role = given["role"]
        rest = {k: v for k, v in given.items() if k not in ("role", "content")}
        said = {"content": given["content"]} if "content" in given else {}
    if role in CALLS and isinstance(said.get("content"), str):
        said = {"content": None, "tool_calls": _calls(said["content"], name)}
    return {"role": ROLES.get(role, role) if isinstance(role, str) else role, **said, **rest}


def _calls(text: str, name: str) -> list[Schema]:
    """What a message of the role ``function_call`` calls: JSON of one call, or of several."""
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name!r}: a call is not JSON ({error}): {text[:80]!r}") from error
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def _written(text: str, name: str) -> Any:
    """Messages that a table holds as JSON, or as Python writes them (pandas' ``to_csv``)."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError(
        f"{name!r} holds messages as text that cannot be read: {text[:80]!r}. Save them as JSON"
    )
