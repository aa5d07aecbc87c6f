"""A conversation as its chat template writes it: the one caller of ``apply_chat_template``.

Templates differ in what they take: text or parts of text, arguments of calls as values or as JSON
text, thoughts under one name or another, a system message or none. Each is given the form in which
it prints all that the conversation says (``kept``); where there is none, the conversation is
refused.
"""

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.kept import TAGS, THOUGHTS, arguments_of, lost_in, thoughts_in

Message = Mapping[str, Any]
Chat = tuple[list[Message], list[Message]]
"""Messages and tools."""
RESPONSE = "The response stands here."
"""Stands for an assistant's words in conversations of which only the frame is wanted."""
_ALWAYS = {"role", "content", "tool_call_id"}
"""Keys of messages of which nothing is said: the first two must be shown, the third is no words."""
_warned: set[tuple[str, str]] = set()
"""Templates and what was said of them."""


class ChatError(ValueError):
    """The chat template does not take a conversation, or leaves out what ``lost`` names."""

    def __init__(self, message: str, lost: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lost = list(lost)


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[Message] = (),
    **options: Any,
) -> str:
    """The text of a conversation.

    Args:
        messages: see ``datamodules.text.messages``.
        tools: JSON schemas of tools that may be called.
        options: of ``apply_chat_template``, or variables that the template reads.

    Raises:
        ChatError: the template refuses the conversation, or drops some of it.
    """
    template = _template(tokenizer, tools)
    given = ([_complete(message) for message in messages], list(tools))
    best: tuple[str, list[str]] | None = None
    refusal: Exception | None = None
    for chat, folded in _forms(given, template):
        try:
            text = tokenizer.apply_chat_template(
                chat[0], tools=chat[1] or None, tokenize=False, **options
            )
        except Exception as error:  # templates raise what they like
            refusal = refusal or error
            continue
        lost = lost_in(text, messages, tools)
        if best is None or len(lost) < len(best[1]):
            best = text, lost
        if not lost:
            _tell(template, messages, folded)
            return text
    if best is None:
        roles = ", ".join(dict.fromkeys(str(message.get("role")) for message in messages))
        raise ChatError(
            f"the tokenizer's chat template refuses the conversation (of {roles}): {refusal}"
        ) from refusal
    raise ChatError(
        f"the tokenizer's chat template drops {best[1][0]}: use a model whose template shows it,"
        " write it into the content, or leave it out of the row",
        best[1],
    )


def _template(tokenizer: PreTrainedTokenizerBase, tools: Sequence[Message]) -> str:
    try:
        return tokenizer.get_chat_template(tools=list(tools) or None)
    except ValueError as error:
        raise ChatError(str(error)) from error


def _forms(given: Chat, template: str) -> Iterator[tuple[Chat, bool]]:
    """The conversation in every form, the likeliest first; whether the system message is folded
    into the user's."""
    changes: list[Callable[[Chat, str], Chat]] = [
        _text_arguments,
        _calls_alone,
        _thoughts_as_text,
        _wrapped_tools,
        _in_parts,
        _without_system,
    ]
    changes = [change for change in changes if change(given, template) != given]
    for count in range(len(changes) + 1):
        for chosen in itertools.combinations(changes, count):
            chat = given
            for change in chosen:
                chat = change(chat, template)
            yield chat, _without_system in chosen


def _complete(message: Message) -> Message:
    """Arguments as values, thoughts under each name that templates know, content where there are
    calls alone: the form that most templates read."""
    message = dict(message)
    if any(isinstance(message.get(key), str) for key in THOUGHTS):
        message |= dict.fromkeys(THOUGHTS, thoughts_in(message))
    if "tool_calls" in message:
        message["tool_calls"] = [
            _with_arguments(call, arguments_of) for call in message["tool_calls"]
        ]
    message.setdefault("content", "")
    return message


def _with_arguments(call: Message, form: Callable[[Message], Any]) -> Message:
    function = call["function"]
    return {**call, "function": {**function, "arguments": form(function)}}


def _each(chat: Chat, change: Callable[[Message], Message]) -> Chat:
    return [change(message) for message in chat[0]], chat[1]


def _text_arguments(chat: Chat, template: str) -> Chat:
    """Calls' arguments as JSON text."""

    def as_text(function: Message) -> str:
        arguments = function["arguments"]
        return (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )

    def change(message: Message) -> Message:
        if "tool_calls" not in message:
            return message
        calls = [_with_arguments(call, as_text) for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}

    return _each(chat, change)


def _thoughts_as_text(chat: Chat, template: str) -> Chat:
    """Thoughts in front of what is said, for templates that know their tags alone."""

    tags = thought_tags(template)

    def change(message: Message) -> Message:
        if not any(key in message for key in THOUGHTS):
            return message
        rest = {key: value for key, value in message.items() if key not in THOUGHTS}
        return {**rest, "content": with_thoughts(message, tags)}

    return _each(chat, change) if tags else chat


def thought_tags(template: str) -> tuple[str, str] | None:
    """What a template of a reasoning model writes around thoughts, or cuts them off by."""
    return next((tags for tags in TAGS if any(tag in template for tag in tags)), None)


def with_thoughts(message: Message, tags: tuple[str, str] | None) -> str:
    """An assistant's words after its thoughts, as reasoning models write them."""
    content = message.get("content") or ""
    if tags is None or not any(isinstance(message.get(key), str) for key in THOUGHTS):
        return content
    return f"{tags[0]}\n{thoughts_in(message).strip()}\n{tags[1]}\n\n{content}"


def _calls_alone(chat: Chat, template: str) -> Chat:
    """No content where there are calls alone."""
    bare = lambda m: {k: v for k, v in m.items() if k != "content"}  # noqa: E731
    return _each(chat, lambda m: bare(m) if "tool_calls" in m and m.get("content") == "" else m)


def _wrapped_tools(chat: Chat, template: str) -> Chat:
    wrap = lambda t: t if "function" in t else {"type": "function", "function": t}  # noqa: E731
    return chat[0], [wrap(tool) for tool in chat[1]]


def _in_parts(chat: Chat, template: str) -> Chat:
    """For templates of models that also see (LLaVA, SmolVLM), which read a list of parts."""
    part = lambda m: {**m, "content": [{"type": "text", "text": m["content"]}]}  # noqa: E731
    return _each(chat, lambda m: part(m) if isinstance(m.get("content"), str) else m)


def _without_system(chat: Chat, template: str) -> Chat:
    """For templates without a system role: its text opens the user's first message."""
    messages = chat[0]
    if len(messages) < 2 or [m["role"] for m in messages[:2]] != ["system", "user"]:
        return chat
    system, first = (message["content"] for message in messages[:2])
    if isinstance(system, str):
        content: Any = f"{system}\n\n{first}"
    else:
        content = [*system, {"type": "text", "text": "\n\n"}, *first]
    return [{**messages[1], "content": content}, *messages[2:]], chat[1]


def _tell(template: str, messages: Sequence[Message], folded: bool) -> None:
    """Name what a template does with conversations that their rows do not say, once each."""
    if folded:
        _warn(
            template,
            "the tokenizer's chat template has no system role: system messages open the user's"
            " first message",
        )
    for key in {key for message in messages for key in message} - _ALWAYS:
        if key not in THOUGHTS and not re.search(rf"\b{re.escape(key)}\b", template):
            _warn(template, f"the tokenizer's chat template does not show {key!r} of messages")


def _warn(template: str, what: str) -> None:
    if (template, what) not in _warned:
        _warned.add((template, what))
        warnings.warn(what, stacklevel=4)
