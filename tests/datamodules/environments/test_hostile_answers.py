"""No answer, whatever stands in it, stops training or holds it up."""

import gc
import json
import math
import sys
import time

import pytest
import torch

from datamodules.environments.booking import BookingEnv
from datamodules.environments.calculator import CalculatorEnv
from datamodules.environments.call_forms import calls_in
from datamodules.environments.code import CodeGenerationEnv, style
from datamodules.environments.code_answers import extract_code, same_code
from datamodules.environments.maths import MathEnv
from datamodules.environments.reasoning import ReasoningGymEnv, extract
from datamodules.environments.toolbox import Toolbox
from datamodules.rewards.answers import is_correct
from datamodules.sandbox import Sandbox
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # of bytes: what is encoded comes back as it was
PLAIN = tiny_tokenizer()
PLAIN.chat_template = None
ROOM = 10**6

NESTS = {
    "minus": ("-", "1", ""),
    "not": ("not ", "1", ""),
    "attributes": ("", "a", ".b"),
    "sum": ("1+", "1", ""),
    "calls": ("", "a", "()"),
    "lambdas": ("lambda: ", "1", ""),
    "powers": ("2**", "1", ""),
    "choices": ("1 if 1 else ", "1", ""),
    "branches": ("", "if 1:\n pass\n", "elif 1:\n pass\n"),
    "brackets": ("[", "", "]"),
    "objects": ('{"a":', "1", "}"),
    "open": ("(", "", ""),
    "braces": ("{", "7", "}"),
    "fractions": ("\\frac{", "1", "}{2}"),
    "roots": ("\\sqrt{", "2", "}"),
}
DEPTHS = (90, 1200, 20_000)
LINES = {
    "null": "\x00",
    "null inside": "def f():\n    return '\x00'",
    "lone carriage returns": "x = 1\rdef f():\r    return 1\ry = '\r'\r",
    "other line ends": "def f():\x0c\n    return '\x1c\u2028\x85'\n",
    "digits": "9" * 20_000,
    "exponent": "1e999999999",
    "tower": "9**9**9**9",
    "zero division": "1/0",
    "other digits": "\u0661\u00b2\u2460",
    "not a number": "NaN",
    "infinity": "-Infinity",
    "nothing": "",
    "white": " \t\n" * 1000,
    "byte order mark": "\ufeffdef f():\n    return 1",
    "words": "word " * 4000,
}
REPEATED = (
    "\\boxed{", "\\boxed", "####", "answer is ", "answer is not ", "answer", "is ", "Answer: 1 or ",
    "$", "$a", "\\(", "\\frac{", "\\text{", "1,111", "1 1/", "1\u00a0", "**", "×10^", "```", "```a",
    "<answer>", "<tool_call>", "</tool_call>", "wrong answer .1", "\\left(", "\n```python\n", "a.",
)  # fmt: skip
TEXTS = LINES | {
    f"{depth} {name}": (before * depth + core + after * depth)[: min(10 * depth, 20_000)]
    for name, (before, core, after) in NESTS.items()
    for depth in DEPTHS
}
TEXTS |= {f"many {part!r}": (part * 4000)[:4000] for part in REPEATED}
CALL = '<tool_call>{"name": "%s", "arguments": {"%s": %s}}</tool_call>'
CALLS = [json.dumps("1" * 300), "[" * 900 + "]" * 900, '{"a":' * 400 + "1" + "}" * 400, "NaN",
         "1e400", "-1e400", "true", "null", "9" * 4000, "9" * 5000, '"\\ud800"', '"\\u0000"',
         "[" * 5000, '{"a": 1, "a": 2}', "7"]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def nothing_else_counts():
    """The time of an answer has no collection of what a thousand other tests left."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def rewards(env, texts, spend=1.0):
    """The reward of each text as one whole response, none of which takes longer than ``spend``."""
    found = {}
    for name, text in texts.items():
        episode = env.fork()
        episode.reset(0)
        began = time.process_time()
        tokens = torch.tensor(TOKENIZER.encode(text or " ", add_special_tokens=False))
        result = episode.respond(tokens)
        reward, _ = env.score([episode])[0]
        assert math.isfinite(reward + result.reward), name
        assert time.process_time() - began < spend, name
        found[name] = reward
    return found


@pytest.mark.parametrize("path", [None, "formulas"])
def test_no_text_stops_the_maths_environment(path, tmp_path):
    """Gold answers that are numbers, and formulas, which math-verify compares."""
    if path is not None:
        path = tmp_path / "formulas.jsonl"
        path.write_text(json.dumps({"question": "Solve.", "answer": r"#### \sqrt{2}+x"}) + "\n")
    env = MathEnv(TOKENIZER, path=path and str(path), num_held_out=0, max_length=ROOM,
                  stop_sequences=())  # fmt: skip
    texts = TEXTS | {f"claimed {k}": f"\\boxed{{{v}}}" for k, v in TEXTS.items() if len(v) < 400}
    assert max(rewards(env, texts).values()) < 1


@pytest.mark.parametrize("chat", [True, False])
def test_no_text_stops_the_code_environment(chat, tmp_path):
    path = tmp_path / "one.jsonl"
    head = "def one():\n    '''1'''\n"
    test = "def check(candidate):\n    assert candidate() == 1\n"
    row = {"task_id": "1", "prompt": head, "test": test, "entry_point": "one"}
    path.write_text(json.dumps(row) + "\n")
    try:
        backend = Sandbox("auto").backend.name
    except ValueError:
        backend = "unsafe"
    env = CodeGenerationEnv(TOKENIZER if chat else PLAIN, str(path), heldout=0, sandbox=backend,
                            max_length=ROOM, stop_sequences=(), memory_mb=128)  # fmt: skip
    few = {k: v for k, v in TEXTS.items() if not k.startswith(("90 ", "1200 ", "many"))}
    texts = {k: v if not chat else f"```python\n{v}\n```" for k, v in few.items()}
    texts |= {f"returned {k}": f"    return {v}" for k, v in TEXTS.items() if k.startswith("1200")}
    texts |= {"right": "```python\ndef one():\n    return 1\n```" if chat else "    return 1"}
    found = rewards(env, texts)
    assert found.pop("right") == pytest.approx(1.0)
    right = {name for name, reward in found.items() if reward > 0.2}
    assert right == {"returned 1200 minus", "returned 1200 not"}, "each of them is worth 1"


@pytest.mark.parametrize("kind", [CalculatorEnv, BookingEnv])
def test_no_text_and_no_call_stops_the_tool_environments(kind):
    env = kind(TOKENIZER, num_problems=2, num_held_out=0, max_length=ROOM)
    (tool, argument) = {CalculatorEnv: ("calculator", "expression"),
                        BookingEnv: ("book", "hotel_id")}[kind]  # fmt: skip
    texts = TEXTS | {f"call {v[:20]}": CALL % (tool, argument, v) for v in CALLS}
    assert max(rewards(env, texts).values()) < 1


def test_no_text_stops_a_task_of_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    for task in ("leg_counting", "countdown", "polynomial_equations"):
        env = ReasoningGymEnv(TOKENIZER, task, num_problems=2, num_held_out=0, max_length=ROOM)
        texts = {k: v for k, v in TEXTS.items() if k.startswith(("many", "1200")) or k in LINES}
        texts |= {f"tagged {k}": f"<answer>{v}</answer>" for k, v in texts.items()}
        rewards(env, texts, spend=3.0)


@pytest.mark.parametrize("part", [*REPEATED, "1", "x", "é", " "])
def test_the_time_to_read_an_answer_grows_as_its_length(part):
    """A hundred thousand characters in a second and a half: what is quadratic takes longer."""
    for before in ("", "```", "answer is ", "\\boxed{", "1"):
        text = before + (part * 100_000)[:100_000]
        began = time.process_time()
        extract_code(text), calls_in(text), extract(text, "tag"), extract(text, "last_line")
        is_correct(text, "7"), is_correct(text, "north")
        assert time.process_time() - began < 1.5, before


# ------------------------------------------------------------------- and stays what it was


def test_programs_nested_too_deeply_to_be_compared_differ():
    deep = "x = " + "-" * 2 * sys.getrecursionlimit() + "1"
    assert not same_code(deep, "x = 1") and not same_code(deep, deep)
    assert same_code("x = (1)  # so", "x=1")


def test_style_counts_lines_as_python_does():
    """One line of three has a finding: the ends of others stand inside of a text."""
    program = "import os\nx = '\x0c\u2028\x85'\ny = 2\n"
    assert style(program) == pytest.approx(2 / 3)
    assert style("x = 1\rimport os\ry = 2\r") == pytest.approx(2 / 3)


def test_a_language_is_a_word_and_a_block_is_found_after_it():
    assert extract_code("```python3 title=x\na = 1\n```") == "a = 1\n"
    assert extract_code("```pythonic\nno\n```\n```py\nyes\n```\n```\nlast\n```") == "yes\n"


def test_the_last_whole_tag_counts():
    assert extract("<answer>1</answer> <answer>2</answer> </answer> <answer>3", "tag") == "2"
    assert extract("</answer><answer>a<answer> b</answer>", "tag") == "a<answer> b"
    assert extract("a</answer>", "tag") is None


def test_a_call_with_arguments_too_deep_to_be_shown_is_told_so():
    def double(number: int) -> int:
        """Double it.

        Args:
            number: any
        """
        return 2 * number

    answers = {Toolbox([double]).answer(calls_in(CALL % ("double", "number", "[" * d + "]" * d))[0])
               for d in range(400, 1000, 10)}  # fmt: skip
    assert {fine for _, fine in answers} == {False}
    assert Toolbox([double]).answer(calls_in(CALL % ("double", "number", 4))[0]) == ("8", True)


def test_a_right_answer_beside_hostile_text_is_right():
    for text in TEXTS.values():
        assert is_correct(f"{text[:200]}\n#### 7", "7")
