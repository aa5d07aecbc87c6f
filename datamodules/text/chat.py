"""Conversations of several turns as tokens, in the form that the tokenizer's template gives them.

What the policy sampled stays as it was sampled. Only what stands around it is written here: the
opening, and after each response the end of its turn, the next messages, and the header of the
assistant's next turn. That text is cut out of the template's own rendering of a dummy conversation.
Ours, because templates only render whole conversations: tokenized again after each turn, what was
sampled would drift.

A tokenizer without a chat template gets plain text: ``User: ...``, ``Assistant: ...``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from datamodules.ends import end_ids
from datamodules.templates import RESPONSE, ChatError, render_chat
from datamodules.text.controls import disarmed, disarmed_tools, readable
from datamodules.text.prompts import Prompt, encode_prompt
from datamodules.text.tokens import tokenize_chat

Message = Mapping[str, Any]
Schema = Mapping[str, Any]


TOOL_TEXT = """You can call these tools:
{tools}
To call one, write nothing but
<tool_call>{{"name": "TOOL", "arguments": {{"ARGUMENT": "VALUE"}}}}</tool_call>
and wait for its answer."""


def opening(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Schema] = ()
) -> tuple[str, list[int]]:
    """A conversation up to the assistant's turn, as text and as token ids.

    Args:
        tools: JSON schemas of tools that may be called. A template that knows tools lists them in
            its own way, another gets them in the system message.

    Raises:
        ValueError: the template takes no such conversation.
    """
    if tokenizer.chat_template is None:
        text = _plain(_with_tools(messages, tools)) + "\n\nAssistant:"
        return text, encode_prompt(tokenizer, Prompt(text)).tolist()
    text = _render(tokenizer, messages, tools) if knows_tools(tokenizer) else None
    if text is None:
        told = _with_tools([_as_user([m]) if m["role"] == "tool" else m for m in messages], tools)
        text = _render(tokenizer, told)
    if text is None:
        roles = [message["role"] for message in messages]
        raise ValueError(
            f"the tokenizer's chat template takes no conversation of {roles}:"
            " use another model or other roles"
        )
    return readable(text), tokenize_chat(tokenizer, text)


def reply(
    tokenizer: PreTrainedTokenizerBase, response: Sequence[int], messages: Sequence[Message]
) -> list[int]:
    """What the environment writes after a response: token ids, to be put behind it as they are.

    Args:
        response: ids as sampled. Where they lack the template's end of turn (they were cut, or
            ended by a stop string), it is written too.
        messages: of the user or of tools (``role`` ``tool``), one at least.

    Raises:
        ValueError: the template takes no such messages after the assistant's turn.
    """
    if tokenizer.chat_template is None:
        text = f"\n\n{_plain(disarmed(tokenizer, messages))}\n\nAssistant:"
        return tokenize_chat(tokenizer, text)
    asked = [{"role": "user", "content": "."}, {"role": "assistant", "content": RESPONSE}]
    text = _render(tokenizer, [*asked, *messages]) if knows_tools(tokenizer) else None
    text = text or _render(tokenizer, [*asked, _as_user(messages)])
    if text is None:
        raise ValueError(
            "the tokenizer's chat template takes no message after the assistant's turn:"
            " this model cannot play an environment of several turns"
        )
    rest = text[text.index(RESPONSE) + len(RESPONSE) :]
    ids = tokenize_chat(tokenizer, rest)
    return ids[_already_written(tokenizer, response, ids) :]


def _already_written(
    tokenizer: PreTrainedTokenizerBase, response: Sequence[int], ids: Sequence[int]
) -> int:
    """How many of ``ids`` end the turn that the response's last token ended: that token, and the
    space which some templates write before it."""
    if not len(response) or response[-1] not in end_ids(tokenizer) or response[-1] not in ids:
        return 0
    at = ids.index(response[-1])
    return 0 if tokenizer.decode(ids[:at]).strip() else at + 1


def knows_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template shows tools by itself. Another refuses the role ``tool``, or prints
    it as a role that its model has never seen."""
    probe = {"name": "probe_of_the_template", "description": "", "parameters": {"type": "object"}}
    text = _render(
        tokenizer, [{"role": "user", "content": "."}], [{"type": "function", "function": probe}]
    )
    return text is not None and probe["name"] in text


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Schema] = ()
) -> str | None:
    """The template's text, ready for the assistant; None where the template refuses."""
    try:
        chat, known = disarmed(tokenizer, messages), disarmed_tools(tokenizer, tools)
        return render_chat(tokenizer, chat, tools=known, add_generation_prompt=True)
    except ChatError:
        return None


def _with_tools(messages: Sequence[Message], tools: Sequence[Schema]) -> list[Message]:
    """The tools described in the system message."""
    if not tools:
        return list(messages)
    text = TOOL_TEXT.format(tools="\n".join(_described(tool["function"]) for tool in tools))
    if messages[0]["role"] == "system":
        text, messages = f"{messages[0]['content']}\n\n{text}", messages[1:]
    return [{"role": "system", "content": text}, *messages]


def _described(function: Mapping[str, Any]) -> str:
    """One tool in words: a whole schema takes five times the tokens, and confuses small models."""
    arguments = function["parameters"].get("properties", {})
    lines = [f"- {function['name']}({', '.join(arguments)}): {function['description']}"]
    for name, argument in arguments.items():
        kind = argument.get("enum", argument.get("type", "any"))
        told = f": {argument['description']}" if argument.get("description") else ""
        lines.append(f"  {name} ({kind}){told}")
    return "\n".join(lines)


def _as_user(messages: Sequence[Message]) -> Message:
    """One message of the user, tools' answers in the tags that Hermes and Qwen models know."""
    return {"role": "user", "content": "\n".join(map(_tagged, messages))}


def _tagged(message: Message) -> str:
    text = message["content"]
    return f"<tool_response>\n{text}\n</tool_response>" if message["role"] == "tool" else text


def _plain(messages: Sequence[Message]) -> str:
    said = (f"{m['role'].capitalize()}: {m['content']}" for m in messages)
    return "\n\n".join(said).removeprefix("System: ")
