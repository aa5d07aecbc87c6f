"""What a chat template can be told beside the conversation, such as ``enable_thinking=False``."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
from transformers import PreTrainedTokenizerBase

_OURS = {"messages", "tools", "add_generation_prompt", "continue_final_message"}
_OURS |= {"tokenize", "raise_exception", "strftime_now"}


def template_variables(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The names that the chat template reads and that are not the conversation's."""
    templates = tokenizer.chat_template
    templates = templates.values() if isinstance(templates, Mapping) else [templates]
    names = set().union(*(_variables(template) for template in templates if template))
    return names - _OURS - set(tokenizer.special_tokens_map)


@lru_cache
def _variables(template: str) -> frozenset[str]:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    tree = environment.parse(source)
    read = jinja2.meta.find_undeclared_variables(tree)
    assigned = {n.name for n in tree.find_all(jinja2.nodes.Name) if n.ctx == "store"}
    asked = {  # `{% if not date is defined %}{% set date = ... %}` has a default of its own
        node.node.name
        for node in tree.find_all((jinja2.nodes.Test, jinja2.nodes.Filter))
        if node.name in ("defined", "undefined", "default", "d")
        and isinstance(node.node, jinja2.nodes.Name)
    }
    return frozenset(read - assigned | read & asked)


def require_variables(
    tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], name: str
) -> None:
    """
    Raises:
        ValueError: the chat template does not read one of ``options``, given as ``name``.
    """
    known = template_variables(tokenizer) if tokenizer.chat_template else set()
    for option in options:
        if option not in known:
            reads = f"it reads {sorted(known)}" if known else "it reads none"
            raise ValueError(
                f"{name} names {option!r}, which the tokenizer's chat template does not read;"
                f" {reads}: leave it out, or use a model whose template knows it"
            )


def set_template_defaults(
    tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any] | None, name: str
) -> None:
    """Have the chat template read ``options`` wherever nobody says otherwise.

    They are written into the template itself, so that each text of a run, and whoever uses the
    exported model, gets the template that it was trained with.

    Args:
        name: what gave ``options``, for errors.

    Raises:
        ValueError: see ``require_variables``.
    """
    if not options:
        return
    require_variables(tokenizer, options, name)
    lines = (
        f"{{% if {key} is not defined %}}{{% set {key} = {_literal(value)} %}}{{% endif %}}"
        for key, value in options.items()
    )
    head = "".join(lines) + "{{ '' }}"  # or Jinja would drop a newline that follows a block
    templates = tokenizer.chat_template
    if isinstance(templates, Mapping):
        tokenizer.chat_template = {key: head + text for key, text in templates.items()}
    elif not templates.startswith(head):
        tokenizer.chat_template = head + templates


def _literal(value: Any) -> str:
    """A plain value as Jinja reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value)
