"""Tool calls in the forms that published chat templates teach, and answers of every kind."""

import dataclasses
import datetime
import decimal
import enum
import functools
import json
import time

import numpy
import pytest
import torch
from template_helpers import tokenizer_of

from datamodules.environments.toolbox import Toolbox
from datamodules.environments.tools import Scene, ToolEnv


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def note(text: str) -> str:
    """Write something down.

    Args:
        text: what.
    """
    return f"noted {text}"


BOX = Toolbox([add, note])
SUM = '{"a": 2, "b": 3}'
FORMS = {
    "hermes": f'<tool_call>\n{{"name": "add", "arguments": {SUM}}}\n</tool_call>',
    "parameters": f'<tool_call>{{"name": "add", "parameters": {SUM}}}</tool_call>',
    "arguments as text": '<tool_call>{"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 3}"}',
    "thoughts first": f'<think>\nHm.\n</think>\n\n<tool_call>{{"name": "add", "arguments": {SUM}}}',
    "openai": f'{{"tool_calls": [{{"function": {{"name": "add", "arguments": {SUM}}}}}]}}',
    "llama": f'{{"name": "add", "parameters": {SUM}}}',
    "llama, typed": f'{{"type": "function", "name": "add", "parameters": {SUM}}}',
    "llama, tag": f'<|python_tag|>{{"name": "add", "parameters": {SUM}}}',
    "llama, words": f'I will add them: {{"name": "add", "parameters": {SUM}}} and wait.',
    "llama, function": f"<function=add>{SUM}</function>",
    "llama, python": "[add(a=2, b=3)]",
    "llama, built in": "<|python_tag|>add.call(a=2, b=3)",
    "fence": f'```json\n{{"name": "add", "arguments": {SUM}}}\n```',
    "mistral": f'[TOOL_CALLS] [{{"name": "add", "arguments": {SUM}, "id": "x"}}]',
    "mistral, new": f"[TOOL_CALLS]add[ARGS]{SUM}",
    "mistral, newest": f"[TOOL_CALLS]add{SUM}",
    "phi": f'<|tool_call|>[{{"name": "add", "arguments": {SUM}}}]<|/tool_call|>',
    "granite": f'<tool_call>[{{"name": "add", "arguments": {SUM}}}]</tool_call>',
    "cohere": f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "add", "parameters": {SUM}}}]',
    "cohere, old": f'Action: ```json\n[{{"tool_name": "add", "parameters": {SUM}}}]\n```',
    "qwen coder": "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=b>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n<arg_key>b</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>",
    "lfm2": "<|tool_call_start|>[add(a=2, b=3)]<|tool_call_end|>",
    "gemma": "```tool_code\nadd(2, b=3)\n```",
    "gemma, print": "```tool_code\nprint(add(a=2, b=3))\n```",
    "gpt-oss": f"<|channel|>commentary to=functions.add <|constrain|>json<|message|>{SUM}",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    f"{SUM}\n```<｜tool▁call▁end｜>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0"
    f"<|tool_call_argument_begin|>{SUM}<|tool_call_end|>",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_call_of_every_published_form_is_executed(form):
    assert [BOX.answer(call) for call in BOX.calls_in(FORMS[form])] == [("5", True)]


TWICE = {
    "llama": f'{{"name": "add", "parameters": {SUM}}}; '
    '{"name": "note", "parameters": {"text": "x"}}',
    "mistral": f'[TOOL_CALLS][{{"name": "add", "arguments": {SUM}}},'
    ' {"name": "note", "arguments": {"text": "x"}}]',
    "mistral, new": f'[TOOL_CALLS]add[ARGS]{SUM}[TOOL_CALLS]note[ARGS]{{"text": "x"}}',
    "python": "[add(a=2, b=3), note(text='x')]",
    "qwen coder": "<tool_call><function=add><parameter=a>2</parameter><parameter=b>3</parameter>"
    "</function></tool_call>\n<tool_call><function=note><parameter=text>x</parameter></function>",
}  # fmt: skip


@pytest.mark.parametrize("form", TWICE)
def test_two_calls_are_executed_in_order(form):
    answers = [BOX.answer(call) for call in BOX.calls_in(TWICE[form])]
    assert answers == [("5", True), ("noted x", True)]


def test_text_in_tags_is_what_the_schema_asks_for():
    said = "<function=note><parameter=text>\n2\n</parameter></function>"
    assert BOX.answer(BOX.calls_in(said)[0]) == ("noted 2", True)
    wrong = "<function=add><parameter=a>two</parameter><parameter=b>3</parameter></function>"
    assert "'two' is not of type 'integer'" in BOX.answer(BOX.calls_in(wrong)[0])[0]


UNREADABLE = [
    "<tool_call>add 2 and 3</tool_call>",
    "<|tool_call>call:add{a:2,b:3}<tool_call|>",
    "[TOOL_CALLS] please add",
    "<|python_tag|>import math; math.exp(3)",
    "<function_calls><invoke name='add'>",
    f'{{"name": "add", "parameters": {SUM}',
    "to=functions.add a=2",
    "<tool_call>",
]


@pytest.mark.parametrize("said", UNREADABLE)
def test_what_is_meant_as_a_call_and_cannot_be_read_is_told_the_form(said):
    (call,) = BOX.calls_in(said)
    answer, fine = BOX.answer(call)
    assert not fine and '<tool_call>{"name": "TOOL", "arguments"' in answer


@pytest.mark.parametrize(
    "said",
    [
        "5",
        "",
        "The answer is 5.",
        '{"name": "Ann", "age": 5}',
        '{"answer": 5}',
        "add(2, 3) is 5",
        f"<think>{FORMS['hermes']}, or {FORMS['llama']}</think>5",
        "[1, 2]",
        "f(x) = [x]",
        "```python\nprint(5)\n```",
        "I call it {a}.",
        '["add", "note"]',
    ],
)
def test_an_answer_is_no_call(said):
    assert BOX.calls_in(said) == []


HOSTILE = ("<tool_call>", "[TOOL_CALLS]a", "to=functions.", "<function=", "[add(", "<arg_key>")
HOSTILE += ('{"name": ', '{"name": "add"', "```tool_code", "<tool_call>[", "<parameter=a>")


def test_hostile_text_is_read_in_time():
    begun = time.thread_time()
    for part in HOSTILE:
        for call in BOX.calls_in(part * 3000):
            BOX.answer(call)
    assert time.thread_time() - begun < 5  # a twentieth of that; quadratic ones take longer


# --------------------------------------------------------------------- what tools return


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Hotel:
    name: str
    stars: numpy.int64


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (numpy.int64(5), "5"), (numpy.float32(0.5), "0.5"), (numpy.bool_(True), "true"),
        (numpy.array([1, 2]), "[1, 2]"), (torch.tensor([1, 2]), "[1, 2]"),
        ({3, 1, 2}, "[1, 2, 3]"), (frozenset("a"), '["a"]'), ((1, "a"), '[1, "a"]'),
        (datetime.date(2026, 11, 25), "2026-11-25"),
        (datetime.datetime(2026, 11, 25, 7, 30), "2026-11-25T07:30:00"),
        (datetime.timedelta(hours=2), "2:00:00"),
        ([datetime.time(7, 30)], '["07:30:00"]'),
        (decimal.Decimal("1.10"), "1.10"), (b"abc", "abc"), (b"\xff", "\\xff"),
        (Hotel("Park", numpy.int64(4)), '{"name": "Park", "stars": 4}'),
        (Colour.RED, "red"), ({datetime.date(2026, 1, 2): {1}}, '{"2026-01-02": [1]}'),
        (None, "null"), (True, "true"), ({"a": 1}, '{"a": 1}'), (range(3), "[0, 1, 2]"),
    ],
)  # fmt: skip
def test_what_a_tool_returns_is_text(value, text):
    def look() -> str:
        """Look."""
        return value

    assert Toolbox([look]).answer('{"name": "look"}') == (text, True)


def test_what_has_no_text_names_the_tool_to_the_user():
    circle = []
    circle.append(circle)
    deep = functools.reduce(lambda inner, _: [inner], range(500), 1)
    for value in (object(), circle, deep, add):

        def look() -> str:
            """Look."""
            return value  # noqa: B023

        with pytest.raises(TypeError, match=r"the tool 'look' returned a \w+, which cannot"):
            Toolbox([look]).answer('{"name": "look"}')


# ------------------------------------------------------------------------------ episodes


class Adding(Scene):
    messages = ({"role": "user", "content": "What is 2 + 3?"},)

    def tools(self):
        return [add]

    def judge(self, answer):
        return float(answer == "5"), {}


@pytest.mark.parametrize("name", ["llama3.1", "hermes", "chatml"])
@pytest.mark.parametrize("form", ["llama", "hermes", "mistral"])
def test_an_episode_goes_on_after_a_call_of_another_form(name, form):
    tokenizer = tokenizer_of(name)
    env = ToolEnv(tokenizer, [Adding()], max_length=4000)
    env.reset()
    result = env.respond(torch.tensor([*tokenizer(FORMS[form])["input_ids"], 2]))
    assert not result.done and result.metrics["tool_calls"] == 1
    assert result.metrics["tool_errors"] == 0
    answered = tokenizer.decode(result.next_observation.input_ids)
    assert json.dumps("5") in answered or "5" in answered.rpartition(FORMS[form])[2]
    assert env.respond(torch.tensor([*tokenizer("5")["input_ids"], 2])).done
    assert env.score([env]) == [(1.0, {})]
