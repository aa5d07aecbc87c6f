"""Pairs in the forms in which people publish them: what is the prompt, what is refused, and why."""

import json
import re
from html import unescape

import datasets
import pytest
from template_helpers import tokenizer_of

from datamodules import PreferenceDataModule
from datamodules.preferences.rows import Pair, Scored, as_pair, as_scored
from datamodules.text.columns import Cells
from datamodules.text.prompts import Prompt
from datamodules.text.tables import read_rows
from rlmodules.tasks import inspect as task


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


SIDES = {"chosen": "Yes", "rejected": "No"}
TALK = {"chosen": [user("Hi"), says("Yes")], "rejected": [user("Hi"), says("No")]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
ASKED = [user("Hi")]

# layout -> (row, prompt); both sides say "Yes" and "No"
LAYOUTS = {
    "trl": ({"prompt": "Hi", **SIDES}, "Hi"),
    "orca": ({"system": "Be brief.", "question": "Hi", **SIDES}, [system("Be brief."), *ASKED]),
    "orca without a system": ({"system": "", "question": "Hi", **SIDES}, "Hi"),
    "distilabel": ({"system": "Be brief.", "input": "Hi", **SIDES}, [system("Be brief."), *ASKED]),
    "alpaca": ({"instruction": "Add.", "input": "1 and 2", **SIDES}, [user("Add.\n1 and 2")]),
    "alpaca without input": ({"instruction": "Hi", "input": "", **SIDES}, ASKED),
    "llama-factory": (
        {"instruction": "Add.", "input": "1, 2", "system": "Be brief.",
         "history": [["Who?", "Me."], ["Why?", "So."]], **SIDES},
        [system("Be brief."), user("Who?"), says("Me."), user("Why?"), says("So."),
         user("Add.\n1, 2")],
    ),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "Be brief."},
                           {"from": "human", "value": "Hi"}],
         "chosen": {"from": "gpt", "value": "Yes"}, "rejected": {"from": "gpt", "value": "No"}},
        [system("Be brief."), *ASKED],
    ),
    "sharegpt with a system column": (
        {"conversations": [{"from": "human", "value": "Hi"}], "system": "Be brief.",
         "chosen": {"from": "gpt", "value": "Yes"}, "rejected": {"from": "gpt", "value": "No"}},
        [system("Be brief."), *ASKED],
    ),
    "axolotl": (
        {"messages": ASKED, "chosen": says("Yes"), "rejected": says("No")},
        ASKED,
    ),
    "openai": (
        {"input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
         "preferred_output": [says("Yes")], "non_preferred_output": [says("No")]},
        ASKED,
    ),
    "ultrafeedback": (
        {"prompt": "Hi", "prompt_id": "f0e37e9f", **TALK, "messages": TALK["chosen"],
         "score_chosen": 8.5, "score_rejected": 3.0},
        ASKED,
    ),
    "ultrafeedback of trl": ({**TALK, "score_chosen": 8.5, "score_rejected": 3.0}, ASKED),
    "ultrafeedback without a prompt": ({**TALK, "messages": TALK["chosen"]}, ASKED),
    "argilla": (
        {"source": "evol", "prompt": "Hi", **TALK, "chosen-rating": 5.0, "chosen-model": "gpt-4",
         "rejected-rating": 2.0, "rejected-model": "alpaca"},
        ASKED,
    ),
    "skywork": ({**TALK, "source": "magpie"}, ASKED),
    "orpo mix": ({"source": "x", "prompt": "Hi", "question": "Hi", **TALK}, ASKED),
    "full hh": ({"prompt": "Hi", "response": "Yes", **SIDES}, "Hi"),
    "collected here": (
        {"prompt": ASKED, "chosen": [says("Yes")], "rejected": [says("No")], "index": 3,
         "score_chosen": 1.0, "score_rejected": 0.0, "finish_chosen": "eos",
         "finish_rejected": "length", "source": {"env": "math", "digest": "ab"}},
        ASKED,
    ),
    "system beside a prompt": ({"prompt": "Hi", "system": "Be brief.", **SIDES},
                               [system("Be brief."), *ASKED]),
    "system beside conversations": ({**TALK, "system": "Be brief."}, [system("Be brief."), *ASKED]),
    "the same system twice": (
        {"prompt": [system("Be brief."), *ASKED], "system": "Be brief.", **SIDES},
        [system("Be brief."), *ASKED],
    ),
    "history of messages": (
        {"prompt": "Hi", "history": [user("a"), says("b")], **SIDES},
        [user("a"), says("b"), *ASKED],
    ),
    "messages as pandas writes them": (
        {"prompt": str(ASKED), "chosen": str([says("Yes")]), "rejected": json.dumps([says("No")])},
        ASKED,
    ),
    "parts of text": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], **SIDES},
        ASKED,
    ),
    "a column of nothing": ({"prompt": "Hi", "context": None, "input": " ", "history": [], **SIDES},
                            "Hi"),
    "text about the row": ({"prompt": "Hi", "remark": "A hard one", **SIDES}, "Hi"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_well_known_layouts_are_read(name):
    row, prompt = LAYOUTS[name]
    pair = as_pair(row)
    assert pair.prompt == Prompt(prompt)
    chat = isinstance(prompt, list)
    assert (pair.chosen, pair.rejected) == (
        ([says("Yes")], [says("No")]) if chat else ("Yes", "No")
    )


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("openai", "llama-factory")])
def test_the_layouts_say_the_same_in_a_table(name, tmp_path):
    """Parquet gives every message of a column the keys of all, and rows the columns of all."""
    row, prompt = LAYOUTS[name]
    datasets.Dataset.from_list([row, {**row, "added": None}]).to_parquet(tmp_path / "a.parquet")
    for _, read in read_rows(str(tmp_path / "a.parquet")):
        assert as_pair(read).prompt == Prompt(prompt)


def test_tools_go_with_the_prompt_and_calls_stay_in_the_answer():
    row = {
        "prompt": ASKED,
        "tools": json.dumps([WEATHER]),
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        "rejected": [says("I cannot know.")],
    }
    pair = as_pair(row)
    assert pair.prompt == Prompt(ASKED, tools=(WEATHER,))
    assert pair.chosen[0]["tool_calls"] == [CALL]
    text = as_pair(row | {"prompt": "Hi"})  # a template is needed to show them
    assert text.prompt == pair.prompt
    shared = as_pair({"conversations": [{"from": "human", "value": "Hi"}], "tools": row["tools"],
                      "chosen": {"from": "function_call",
                                 "value": json.dumps(CALL["function"])},
                      "rejected": {"from": "gpt", "value": "I cannot know."}})  # fmt: skip
    assert shared.prompt == pair.prompt
    assert shared.chosen[0]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ({"tool_calls": [CALL]}, {"content": "No"}),
        ({"content": "", "tool_calls": [CALL]},
         {"tool_calls": [{"type": "function", "function": {"name": "weather"}}]}),
        ({"content": "Yes", "reasoning_content": "Why not?"}, {"content": "Yes"}),
        ({"content": "", "thinking": "Hm."}, {"content": "", "thinking": "Oh."}),
    ],
)  # fmt: skip
def test_sides_may_differ_in_their_calls_and_thoughts_alone(chosen, rejected):
    sides = [{"role": "assistant", **side} for side in (chosen, rejected)]
    pair = as_pair({"prompt": "Hi", "chosen": [sides[0]], "rejected": [sides[1]]})
    assert pair.chosen[0] != pair.rejected[0]
    for name in ("tool_calls", "reasoning_content", "thinking"):
        assert pair.chosen[0].get(name) == chosen.get(name)


# ------------------------------------------------------------------------ the file's own names


def mapped(row, **columns):
    return as_pair(Cells(row, columns))


def test_columns_of_other_names_are_given_theirs():
    row = {"frage": "Hi", "gut": "Yes", "schlecht": "No", "abstand": "0.5", "rolle": "Be brief."}
    names = {"prompt": "frage", "chosen": "gut", "rejected": "schlecht", "margin": "abstand"}
    pair = mapped(row, **names, system="rolle")
    assert pair == Pair(Prompt([system("Be brief."), *ASKED]), [says("Yes")], [says("No")], 0.5)
    assert mapped({**row, "prompt": "an id"}, **names, system="rolle") == pair
    assert mapped({"q": "Add.", "ctx": "1, 2", **SIDES}, prompt="q", input="ctx").prompt == Prompt(
        "Add.\n1, 2"
    )


def test_a_column_that_is_not_meant_is_left_out():
    row = {"prompt": "Hi", "context": "of the annotator", **SIDES}
    with pytest.raises(ValueError, match="'context'"):
        as_pair(row)
    assert mapped(row, context=None).prompt == Prompt("Hi")
    row = {"prompt": "7", "chosen": "Hi Yes", "rejected": "Hi No"}
    assert mapped(row, prompt=None) == Pair(Prompt("Hi"), " Yes", " No")


# ------------------------------------------------------------------------ refusals

LEFT_OVER = (
    r"would not be read: name what it is, as data\.columns=\{(prompt|input): \w+\} .*: null\}"
)
REFUSED = {
    "an empty question": ({"question": "", "chosen": "The a", "rejected": "The b"},
                          "the column 'question' is empty"),
    "empty conversations": ({"conversations": [], **SIDES}, "the column 'conversations' is empty"),
    "a gap beside another prompt": ({"prompt": None, "question": "Hi", **SIDES},
                                    "the column 'prompt' is empty"),
    "a message of nothing": ({"prompt": [user("")], **SIDES}, "the prompt says nothing"),
    "a context": ({"question": "Hi", "context": "It rains.", **SIDES}, f"'context'.*{LEFT_OVER}"),
    "an input that nothing joins": ({"prompt": "Add.", "input": "1, 2", **SIDES}, "'input' says"),
    "two prompts": ({"prompt": "Hi", "instruction": "Be brief.", **SIDES}, "'instruction' says"),
    "a picture": ({"prompt": "Hi", "images": [{"bytes": "00"}], **SIDES}, "'images' says"),
    "a prompt of another name": ({"frage": "Hi?", **SIDES}, f"'frage'.*{LEFT_OVER}"),
    "several": ({"frage": "Hi?", "thema": "x", **SIDES}, "'frage', 'thema' says .each of them"),
    "a prompt in other words": (
        {"human": "Hi?", "chosen": "I say yes", "rejected": "I say no"}, "'human' says"),
    "another system": (
        {"prompt": [system("Be long."), *ASKED], "system": "Be brief.", **SIDES},
        "'system' says 'Be brief.', and the system message of the conversation 'Be long.'"),
    "a history of text": ({"prompt": "Hi", "history": "a, b", **SIDES}, "'history' must hold"),
    "a history of uneven turns": ({"prompt": "Hi", "history": [["a"]], **SIDES}, "must hold"),
    "a history twice": ({"prompt": ASKED, "history": [["a", "b"]], **SIDES}, "remove one of them"),
    "a system without a prompt": (
        {"system": "Be brief.", "chosen": "Hi Yes", "rejected": "Hi No"}, "in a column 'prompt'"),
    "no common start": (
        {"chosen": [user("a"), says("x")], "rejected": [user("b"), says("x")]},
        "'chosen' begins with user: 'a' and 'rejected' with user: 'b'.*no prompt in common"),
    "a common system alone": (
        {"chosen": [system("s"), user("a"), says("x")],
         "rejected": [system("s"), user("b"), says("x")]},
        "'chosen' begins with user: 'a', which is not the prompt"),
    "a prompt of other spaces": (
        {"prompt": "Hi ", **TALK}, "differs from the prompt user: 'Hi ' by spaces or line ends"),
    "a prompt that is not asked": (
        {"prompt": "Bye", **TALK}, "'chosen' begins with user: 'Hi', which is not the prompt"),
    "an unknown speaker": (
        {"conversations": [{"from": "narrator", "value": "Hi"}], **SIDES}, "from 'narrator'"),
    "a call that is no JSON": (
        {"prompt": "Hi", "chosen": {"from": "function_call", "value": "weather()"},
         "rejected": {"from": "gpt", "value": "No"}}, "a call is not JSON"),
    "messages that cannot be read": (
        {"prompt": "[{'role': 'user', 'content': array([1])}]", **SIDES}, "Save them as JSON"),
    "a conversation that is answered": (
        {"messages": [*ASKED, says("Maybe")], **SIDES}, "'messages' ends with an answer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_read_is_refused_with_the_reason(name):
    row, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        as_pair(row)


# ------------------------------------------------------------------------ scored responses


def test_scored_responses_are_read_alike():
    scores = {"helpful": 0.5}
    rows = {
        "trl": {"prompt": "Hi", "response": "Yes"},
        "completion": {"prompt": "Hi", "completion": "Yes"},
    }
    for row in rows.values():
        assert as_scored(row | scores, ["helpful"]) == Scored(Prompt("Hi"), "Yes", (0.5,))
    alpaca = {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief."}
    assert as_scored(alpaca | scores, ["helpful"]) == Scored(
        Prompt([system("Be brief."), user("Add.\n1, 2")]), [says("3")], (0.5,)
    )
    with pytest.raises(ValueError, match=LEFT_OVER):
        as_scored(
            {"prompt": "Hi", "response": "Yes", "context": "It rains.", **scores}, ["helpful"]
        )


TOKEN = re.compile(r'<span class="token (\w+)[^"]*" title="[^"]*">(.*?)</span>', re.DOTALL)
SETTINGS = {"module": "rlmodules.DPO", "model": {"name": "random:tiny", "lora": {}}}


def said(prompt):
    """What a prompt says, message by message."""
    return [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt if m["content"]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_task_inspect_shows_a_layout_as_what_it_is(name, tmp_path, monkeypatch):
    row, prompt = LAYOUTS[name]
    path, page = tmp_path / "a.jsonl", tmp_path / "a.html"
    path.write_text("\n".join([json.dumps(row)] * 2))
    monkeypatch.setattr(task, "load_tokenizer", lambda _: tokenizer_of("chatml"))
    data = PreferenceDataModule(str(path), eval_size=0, batch_size=1)
    task.inspect(None, data, None, SETTINGS, out=str(page), rows=1)
    shown = {}
    for kind, text in TOKEN.findall(page.read_text()):
        shown[kind] = shown.get(kind, "") + unescape(text).replace("⏎", "")
    assert all(text in shown["prompt"] for text in said(prompt))
    assert "Yes" in shown["response"] and "No" in shown["response"]
    assert "Yes" not in shown["prompt"] and set(shown) == {"prompt", "response"}
    reading = data.readings["data.path"]
    assert set(reading.columns.used) | set(reading.columns.unused) == set(row)
