"""Tool calls as models write them: each published form becomes the one that a toolbox reads.

Chat templates teach their models forms of their own: JSON in tags (Hermes, Qwen, Granite, Phi),
bare JSON (Llama), a list behind a token (Mistral, Cohere), tags within tags (Qwen3-Coder, GLM),
Python (Llama 4, LFM2, Gemma), channels (gpt-oss), sections (DeepSeek, Kimi). What has the marks of
a call and cannot be read stays as it is, for the toolbox to say how calls are written: it is no
answer.
"""

import ast
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from datamodules.kept import TAGS

Parameters = Mapping[str, Mapping[str, Any]]
"""Tool -> its parameters, in order, each with its JSON schema."""
_DECODER = json.JSONDecoder()
_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_XML = re.compile(r"<function=([^>\s]{1,100})>(.*?)(?:</function>|$)", re.DOTALL)
_XML_VALUE = re.compile(r"<parameter=([^>\s]{1,100})>\n?(.*?)\n?(?:</parameter>|$)", re.DOTALL)
_GLM_VALUE = re.compile(
    r"<arg_key>\s*(.*?)\s*</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|$)", re.DOTALL
)
_NAMED = re.compile(  # a name, some mark, and JSON: gpt-oss, DeepSeek, Kimi, Mistral
    r"(?:to=functions\.|<｜tool▁sep｜>|<\|tool_call_begin\|>\s*(?:functions\.)?|\[TOOL_CALLS\]\s*)"
    r"([\w.-]+?)(?::\d+)?(?=[^\w.:-]|$)[^{]{0,80}?(?=\{)"
)
_LISTED = re.compile(
    r"(?:\[TOOL_CALLS\]|<\|tool_call\|>|<\|START_ACTION\|>|<tools?_calls?>|Action:\s*```(?:json)?"
    r"|<\|python_tag\|>|<\|tool_call_start\|>|```tool_code)\s*"
)
_MARKS = re.compile(
    r"<tool_call|\[TOOL_CALLS\]|<\|tool_call|<\|python_tag\|>|<\|START_ACTION\|>|<function="
    r"|```tool_code|to=functions\.|<｜tool▁calls?▁begin｜>|<\|tool_calls_section_begin\|>"
    r"|<function_calls?>|<invoke "
)
_OBJECT = re.compile(r'\{\s*"(?:name|function|tool_name|type|id|arguments|parameters|tool_calls)"')
MOST_OBJECTS = 50
"""That are looked at amid a response's words: each failure reads on to the end."""
_NAME_KEYS, _ARGUMENT_KEYS = ("name", "tool_name"), ("arguments", "parameters")


def calls_in(text: str, tools: Parameters | None = None) -> list[str]:
    """Each call of a response as JSON text with ``name`` and ``arguments``, or, where it cannot be
    read, as it was written.

    Args:
        tools: that there are. Calls without a mark of their own are looked for by their names.
    """
    tools = tools or {}
    for _, closes in TAGS:
        text = text.rpartition(closes)[2]  # what is only thought of is not called
    for form in (_tagged, _xml, _named, _listed, _python, _bare):
        if calls := list(form(text, tools)):
            return calls
    mark = _MARKS.search(text)
    return [text[mark.start() :]] if mark else []


def as_json(name: str, arguments: Any) -> str:
    """A call as a toolbox reads it."""
    return json.dumps({"name": name, "arguments": arguments})


def named_call(value: Any) -> tuple[str, Any] | None:
    """Name and arguments of a call that JSON holds; None where it is none."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        value = value["function"]  # as OpenAI's API writes it
    if not isinstance(value, Mapping):
        return None
    name = next((value[key] for key in _NAME_KEYS if isinstance(value.get(key), str)), None)
    if name is None and isinstance(value.get("function"), str):
        name = value["function"]
    keys = [key for key in _ARGUMENT_KEYS if key in value]
    if name is None or not keys:
        return None
    arguments = value[keys[0]]
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    return name, arguments


def _tagged(text: str, tools: Parameters) -> Iterator[str]:
    """``<tool_call>``, with JSON, or tags, within."""
    for inside in _TAGGED.findall(text):
        if _XML.search(inside):
            yield from _xml(inside, tools)
        elif "<arg_key>" in inside or inside.strip() in tools:
            name = inside.partition("<")[0].strip()
            yield as_json(name, _typed(dict(_GLM_VALUE.findall(inside)), tools.get(name, {})))
        else:
            yield from _json_calls(inside)


def _json_calls(text: str) -> Iterator[str]:
    """Each call of a list, or the one that there is; what is no call as it was written."""
    value = _loaded(text)
    values = value if isinstance(value, list) and len(value) > 1 else [value]
    for value in values:
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        call = named_call(one)
        yield as_json(*call) if call else text if len(values) == 1 else json.dumps(value)


def _xml(text: str, tools: Parameters) -> Iterator[str]:
    """``<function=add><parameter=a>1</parameter></function>``, or JSON in the place of tags."""
    for name, inside in _XML.findall(text):
        values: Any = dict(_XML_VALUE.findall(inside))
        if not values and inside.strip():
            values = _loaded(inside)
        else:
            values = _typed(values, tools.get(name, {}))
        yield as_json(name, values)


def _named(text: str, tools: Parameters) -> Iterator[str]:
    for found in _NAMED.finditer(text):
        value = _first_value(text, found.end())
        yield as_json(found[1], value) if isinstance(value, dict) else text[found.start() :]


def _listed(text: str, tools: Parameters) -> Iterator[str]:
    """JSON, or Python, behind a mark; several calls one after the other, or in a list."""
    mark = _LISTED.search(text)
    if mark is None:
        return
    rest = text[mark.end() :]
    if calls := list(_python(re.split(r"<\||```", rest)[0], tools)):
        yield from calls
        return
    at: int | None = 0
    while at is not None and (begin := re.compile(r"[;,\s]*(?=[\[{])").match(rest, at)):
        try:
            value, at = _DECODER.raw_decode(rest, begin.end())
        except (ValueError, RecursionError):
            return
        for call in map(named_call, value if isinstance(value, list) else [value]):
            if call:
                yield as_json(*call)


def _python(text: str, tools: Parameters) -> Iterator[str]:
    """``[add(a=1, b=2)]``, the whole of a response, of tools that there are."""
    text = text.strip().removesuffix("]]") + "]" * (2 * text.strip().endswith("]]"))
    if not any(f"{name}(" in text or f"{name}.call(" in text for name in tools):
        return
    try:
        body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return
    calls = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
    if isinstance(body, ast.Call) and ast.unparse(body.func) == "print" and len(body.args) == 1:
        calls = body.args
    read = [_python_call(call, tools) for call in calls]
    if all(read):
        yield from (as_json(*call) for call in read if call)


def _python_call(node: ast.expr, tools: Parameters) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(node, ast.Call):
        return None
    name = ast.unparse(node.func)
    name = name if name in tools else name.removesuffix(".call").rpartition(".")[2]
    if name not in tools or len(node.args) > len(tools[name]):
        return None
    values = dict(zip(tools[name], node.args, strict=False))
    values |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    try:
        return name, {key: _python_value(value) for key, value in values.items()}
    except (ValueError, TypeError, RecursionError):
        return None


def _python_value(node: ast.expr) -> Any:
    """A literal, JSON's names among them."""
    names = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    value = ast.literal_eval(node)
    json.dumps(value)
    return value


def _bare(text: str, tools: Parameters) -> Iterator[str]:
    """JSON alone, or amid words where it names a tool that there is."""
    whole = _loaded(re.sub(r"^```\w*\s|```$", "", text.strip()).strip())
    if isinstance(whole, Mapping) and isinstance(whole.get("tool_calls"), list):
        whole = whole["tool_calls"]
    calls = list(map(named_call, whole if isinstance(whole, list) else [whole]))
    if calls and all(calls):
        yield from (as_json(*call) for call in calls if call)
        return
    end = 0
    for found in itertools.islice(_OBJECT.finditer(text), MOST_OBJECTS):
        if found.start() < end:
            continue
        try:
            value, end = _DECODER.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            if any(f'"{name}"' in text[found.start() :] for name in tools):
                yield text[found.start() :]
                return
            continue
        call = named_call(value)
        if call and call[0] in tools:
            yield as_json(*call)


def _typed(values: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Text of tags as the values that the tool's schema asks for."""
    typed: dict[str, Any] = {}
    for name, text in values.items():
        kind = parameters.get(name, {}).get("type", "string")
        text = text if kind == "string" else text.strip()
        value = text if kind == "string" else _loaded(text)
        if kind == "boolean" and text in ("True", "False"):
            value = text == "True"
        typed[name] = value
    return typed


def _first_value(text: str, at: int) -> Any:
    try:
        return _DECODER.raw_decode(text, at)[0]
    except (ValueError, RecursionError):
        return None


def _loaded(text: str) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")
