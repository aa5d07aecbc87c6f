"""Prompts, and how they become tokens; ``prompt_files`` reads them.

A prompt is plain text, continued as it stands, or a conversation, which goes through the chat
template exactly once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.ends import opened
from datamodules.kept import TAGS
from datamodules.template_options import require_variables
from datamodules.templates import render_chat
from datamodules.text.controls import disarmed, disarmed_tools, readable
from datamodules.text.messages import Message, Schema, as_messages, as_tools
from datamodules.text.tokens import tokenize_chat

Content = str | list[Message]
"""Text, or chat messages (``as_messages``)."""


@dataclass(frozen=True)
class Prompt:
    """Text or chat messages, with the other columns of its row."""

    content: Content
    metadata: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Schema, ...] = ()
    """That the conversation may call, as its row's ``tools`` name them (``as_tools``)."""


def as_prompt(prompt: str | Sequence[Mapping[str, Any]] | Prompt) -> Prompt:
    """Wrap text or messages, which keep all that their row says.

    Raises:
        ValueError: neither text nor messages; see ``as_messages``.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(prompt)
    return Prompt(as_messages(prompt))


def conversation(metadata: Mapping[str, Any], known: Collection[str]) -> Prompt:
    """The prompt that an episode's metadata hold: ``messages`` and ``tools``, and as much of
    ``chat_template_kwargs`` as is ``known``."""
    own = metadata.get("chat_template_kwargs") or {}
    own = {name: value for name, value in own.items() if name in known}
    tools = as_tools(metadata.get("tools"))
    return Prompt(metadata["messages"], {"chat_template_kwargs": own}, tools)


def is_continued(prompt: Prompt) -> bool:
    """Whether it ends in an assistant's message, which the policy goes on with."""
    return not isinstance(prompt.content, str) and prompt.content[-1]["role"] == "assistant"


def begun(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """What the assistant has said already when the policy begins, for rewards to see: the message
    that is continued, or the thoughts that the generation prompt opens."""
    if isinstance(prompt.content, str):
        return ""
    text = prompt_text(tokenizer, prompt)
    if is_continued(prompt):
        said: str = prompt.content[-1]["content"]
        return said if text.endswith(said) else said.rstrip()  # some templates trim it
    opened_at = [text.rfind(opens) for opens, _ in TAGS if text.rstrip().endswith(opens)]
    return text[max(opened_at) :] if opened_at else ""


def asked_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The prompt's text without what is ``begun``."""
    return prompt_text(tokenizer, prompt).removesuffix(begun(tokenizer, prompt))


def prompt_text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, marked: bool = False) -> str:
    """The text that the policy continues.

    Args:
        marked: with marks around special tokens in what messages say (``controls``).
    """
    if isinstance(prompt.content, str):
        return prompt.content
    if is_continued(prompt) and not prompt.content[-1].get("content"):
        raise ValueError(
            "the prompt ends in an assistant's message without text, which cannot be continued:"
            " leave it out, or put the tool's answer behind its calls"
        )
    way = "continue_final_message" if is_continued(prompt) else "add_generation_prompt"
    text = render_prompt(tokenizer, prompt, prompt.content, **{way: True})
    return text if marked else readable(text)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    messages: Sequence[Message],
    **options: Any,
) -> str:
    """``messages`` as the chat template writes them with the tools and the options of the prompt's
    row, special tokens in them marked.

    Raises:
        ValueError: there is no chat template, or it refuses them.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "the rows are conversations, but the tokenizer has no chat template:"
            " use an instruction-tuned model or plain text"
        )
    own = prompt.metadata.get("chat_template_kwargs") or {}
    require_variables(tokenizer, own, "chat_template_kwargs")
    chat, tools = disarmed(tokenizer, messages), disarmed_tools(tokenizer, prompt.tools)
    return render_chat(tokenizer, chat, tools=tools, **own, **options)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> Tensor:
    """Token ids [T]. A chat template writes its own special tokens, so none are added to it."""
    text = prompt_text(tokenizer, prompt, marked=True)
    plain = isinstance(prompt.content, str)
    ids = opened(tokenizer, text) if plain else tokenize_chat(tokenizer, text)
    return torch.tensor(ids, dtype=torch.long)
