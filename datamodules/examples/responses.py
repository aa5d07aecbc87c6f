"""A prompt and what answers it, as the columns of a row have them: for pairs and demonstrations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from datamodules.text.columns import Cells, texts_of
from datamodules.text.layouts import CONVERSATIONS, content_of, prompt_of, with_system
from datamodules.text.messages import Message
from datamodules.text.prompts import Content, Prompt

RESPONSES = ("response", "completion", "output")
"""Where the response of a row with one stands."""


def answer_in(
    cells: Cells, *, chat: bool, names: Sequence[str] = RESPONSES
) -> tuple[Prompt, Prompt, Content]:
    """The prompt of a row as it stands there, and prompt and response in one form.

    Raises:
        ValueError: a column is missing, or the response is empty.
    """
    given = explicit_prompt(cells, chat=chat, text=True)
    if given is None:
        cells.require("prompt")
        given = Prompt("")
    response = response_in(cells, *names)
    prompt, response, _ = with_prompt(given, response, response)
    require_answer(response, "response", prompt)
    return given, prompt, response


def response_in(cells: Cells, *names: str) -> Content:
    """The first of the columns that there is: text, messages, or one message."""
    value = cells.require(*names)
    one = isinstance(value, Mapping) and ("role" in value or "from" in value)
    return content_of([value] if one else value, names[0])


def explicit_prompt(cells: Cells, *, chat: bool, text: bool) -> Prompt | None:
    """The prompt of a column; of texts it may be given as an empty one."""
    prompt = prompt_of(cells, chat=chat)
    if prompt is None and text and isinstance(cells.row.get(cells.names.get("prompt", "")), str):
        return Prompt(cells.require("prompt"))
    if prompt is not None and prompt.content and isinstance(prompt.content, list):
        column = next((c for c in CONVERSATIONS if cells.names.get(c) in cells.used), None)
        if column is not None and prompt.content[-1]["role"] == "assistant":
            raise ValueError(
                f"{cells.names[column]!r} ends with an answer beside those that are compared: leave"
                " it out, or call the column 'prompt' if they continue it"
            )
    return prompt


def with_prompt(
    prompt: Prompt, chosen: Content, rejected: Content
) -> tuple[Prompt, Content, Content]:
    """Prompt and responses in one form: a conversation as soon as one of them is messages."""
    if isinstance(prompt.content, str) and isinstance(chosen, str):
        return prompt, chosen, rejected
    start = _messages(prompt.content, "user")
    sides = [_messages(side, "assistant") for side in (chosen, rejected)]
    system = start[0] if start and start[0]["role"] == "system" else None
    asked = start[1:] if system else start
    # Some data sets repeat the prompt in both sides, perhaps after a system message.
    shared = shared_by(*sides)
    for end in range(len(asked), shared + 1):
        if asked and sides[0][end - len(asked) : end] == asked:
            begun = sides[0][:end]
            start = with_system(begun, system["content"]) if system else begun
            return replace(prompt, content=start), sides[0][end:], sides[1][end:]
    for repeated in (start, asked):
        sides = [s[len(repeated) :] if repeated and _begins(s, repeated) else s for s in sides]
    return replace(prompt, content=start), sides[0], sides[1]


def _begins(side: list[Message], messages: list[Message]) -> bool:
    return side[: len(messages)] == messages


def shared_by(chosen: Content, rejected: Content) -> int:
    """How many characters or messages both begin with."""
    for shared, (a, b) in enumerate(zip(chosen, rejected, strict=False)):
        if a != b:
            return shared
    return min(len(chosen), len(rejected))


def _messages(content: Content, role: str) -> list[Message]:
    if not isinstance(content, str):
        return content
    return [{"role": role, "content": content}] if content else []


def require_answer(side: Content, name: str, prompt: Prompt) -> None:
    """
    Raises:
        ValueError: it says nothing, or begins with what it answers.
    """
    if not any(text.strip() for text in texts_of(side)):
        raise ValueError(f"the {name} response is empty")
    if isinstance(side, str) or side[0]["role"] not in ("user", "system", "developer"):
        return
    asked = prompt.content[-1] if prompt.content else None
    why = "which is not the prompt"
    if isinstance(asked, dict) and _squeezed(asked) == _squeezed(side[0]):
        why = f"which differs from the prompt {shown(asked)} by spaces or line ends alone"
    raise ValueError(
        f"{name!r} begins with {shown(side[0])}, {why}: it would be trained as if the model had"
        " said it. Make the two alike, or leave the prompt out of one of them"
    )


def _squeezed(message: Message) -> str:
    return "".join(str(message.get("content")).split())


def shown(message: Message | str) -> str:
    if isinstance(message, str):
        return repr(message)
    return f"{message['role']}: {str(message.get('content'))[:40]!r}"
