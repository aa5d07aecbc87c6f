"""Messages and tools as rows write them down."""

import json

import pytest

from datamodules.text.messages import as_messages, as_tools
from datamodules.text.prompts import Prompt, as_prompt

CALL = {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": "Yo", "reasoning_content": "Hm."},
        {"role": "assistant", "tool_calls": [CALL | {"id": "1", "type": "function"}]},
        {"role": "tool", "content": "12", "tool_call_id": "1"},
        {"role": "assistant", "thinking": "Hm."},
        {"role": "anything", "content": "", "weight": 0},
    ],
)
def test_a_message_keeps_all_it_says(message):
    assert as_prompt([message]) == Prompt([message])


def test_keys_without_a_value_are_left_out_as_parquet_gives_each_message_those_of_all():
    called = {"function": {"name": "f", "arguments": {"a": 1, "b": None}}, "id": None}
    said = {"role": "user", "content": "Hi", "tool_calls": None, "name": None}
    asked = {"role": "assistant", "content": None, "tool_calls": [called]}
    assert as_messages([said | {"tool_calls": []}, asked]) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ]


def test_calls_of_other_forms_get_the_form_that_templates_read():
    function = {"name": "f", "arguments": {}}
    wanted = [{"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]
    assert as_messages([{"role": "assistant", "tool_calls": [function]}]) == wanted
    old = as_messages([{"role": "assistant", "content": None, "function_call": function}])
    assert old == [{"role": "assistant", "tool_calls": [{"function": function}]}]


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello", "image": None}]
    assert as_messages([{"role": "user", "content": parts}]) == [
        {"role": "user", "content": "Say hello"}
    ]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": [{"type": "image"}]}, "message 1 holds a part .* 'image'"),
        ({"role": "user", "content": [{"type": "image_url", "text": "x"}]}, "'image_url'"),
        ({"role": "user", "content": [5]}, "'int'"),
        ({"role": "user", "content": 5}, "must be text or parts of text, not 5"),
        ({"role": "user"}, "'role' and 'content'"),
        ({"content": "Hi"}, "'role' and 'content'"),
        ({"role": "assistant", "tool_calls": "f()"}, "must be a list of calls"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "no function's name"),
    ],
)
def test_what_is_no_text_is_refused_by_name(message, said):
    with pytest.raises(ValueError, match=said):
        as_prompt([message])


@pytest.mark.parametrize("given", [[TOOL], (TOOL,), TOOL, json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_are_schemas_or_text_of_them(given):
    assert as_tools(given) == (TOOL,)


def test_no_tools_and_no_schemas():
    assert as_tools(None) == as_tools([]) == as_tools("") == ()
    for wrong in ("get weather", [{"a": 1}], 5, ["{"]):
        with pytest.raises(ValueError, match="tools"):
            as_tools(wrong)
