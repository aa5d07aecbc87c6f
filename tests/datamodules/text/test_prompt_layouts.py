"""Prompts of online algorithms in the forms in which people publish them, and what is left over."""

import json

import pytest

from datamodules.text.columns import Columns, Reading
from datamodules.text.prompt_files import gather_prompts, load_prompts
from datamodules.text.prompts import Prompt


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="a.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


LAYOUTS = {
    "trl": ({"prompt": "Hi", "answer": "4"}, Prompt("Hi", {"answer": "4"})),
    "gsm8k": ({"question": "2+2?", "answer": "#### 4"}, Prompt("2+2?", {"answer": "#### 4"})),
    "messages": ({"messages": [SYSTEM, user("Hi")], "gold": 4},
                 Prompt([SYSTEM, user("Hi")], {"gold": 4})),
    "answered messages": ({"messages": [user("Hi"), says("Yes"), user("Bye"), says("Ciao")]},
                          Prompt([user("Hi"), says("Yes"), user("Bye")],
                                 {"completion": [says("Ciao")]})),
    "sharegpt": ({"conversations": [{"from": "human", "value": "Hi"},
                                    {"from": "gpt", "value": "Yes"}], "id": "x1"},
                 Prompt([user("Hi")], {"id": "x1", "completion": [says("Yes")]})),
    "alpaca": ({"instruction": "Add.", "input": "1, 2", "output": "3", "text": "### Add."},
               Prompt([user("Add.\n1, 2")], {"output": "3", "text": "### Add."})),
    "orca": ({"system": "Be brief.", "question": "Hi", "response": "Yes"},
             Prompt([SYSTEM, user("Hi")], {"response": "Yes"})),
    "system": ({"prompt": "Hi", "system_prompt": "Be brief."}, Prompt([SYSTEM, user("Hi")])),
    "history": ({"prompt": "Hi", "history": [["a", "b"]]},
                Prompt([user("a"), says("b"), user("Hi")])),
    "tools": ({"prompt": "Hi", "tools": [TOOL]}, Prompt([user("Hi")], tools=(TOOL,))),
    "calls": (
        {"messages": [user("Hi"), {"role": "assistant", "content": None,
                                   "tool_calls": [TOOL | {"id": "1"}]},
                      {"role": "tool", "tool_call_id": "1", "content": "4"}]},
        Prompt([user("Hi"), {"role": "assistant", "tool_calls": [TOOL | {"id": "1"}]},
                {"role": "tool", "tool_call_id": "1", "content": "4"}])),
    "a prompt that is continued": ({"prompt": [user("Hi"), says("Well")]},
                                   Prompt([user("Hi"), says("Well")])),
    "a conversation alone": ([user("Hi")], Prompt([user("Hi")])),
    "another prompt": ({"prompt": "Hi", "question": "Hi?", "messages": [user("Hi")]},
                       Prompt("Hi", {"question": "Hi?", "messages": [user("Hi")]})),
    "nothing added": ({"prompt": "Hi", "input": "", "system": None, "history": []},
                      Prompt("Hi", {"input": "", "system": None, "history": []})),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_prompts_are_read_with_the_rest_of_their_rows(write, name):
    row, expected = LAYOUTS[name]
    if name == "a conversation alone":  # a line of its own, not a file of two rows
        assert load_prompts(write(row, row))[0] == expected
    else:
        assert load_prompts(write(row)) == [expected]


REFUSED = {
    "a context": ({"question": "Who?", "context": "He."}, "'context' says would not be read"),
    "an input": ({"prompt": "Add.", "input": "1, 2"}, "'input'.*data.columns=.*leaves it to the"),
    "an instruction": ({"question": "Hi", "instruction": "Be brief."}, "'instruction'"),
    "a picture": ({"prompt": "Hi", "image": "a.png"}, "'image'"),
    "an answer alone": ({"messages": [SYSTEM, says("Yes")]}, "holds no message to answer"),
    "half a character": ({"prompt": "x\ud83d"}, "half a character"),
    "a call of no form": ({"messages": [{"role": "user", "content": 3}]}, "messages"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_be_read_is_refused_by_file_and_line(write, name):
    row, sentence = REFUSED[name]
    path = write({"prompt": "fine"}, row)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: .*{sentence}"):
        load_prompts(path)


def test_a_column_that_adds_to_the_prompt_is_named_or_left_to_the_reward(write):
    row = {"frage": "Add.", "context": "1, 2", "answer": 3}
    path = write(row)
    joined = load_prompts(path, columns={"prompt": "frage", "input": "context"})
    assert joined == [Prompt("Add.\n1, 2", {"answer": 3})]
    left = load_prompts(path, columns={"prompt": "frage", "context": None})
    assert left == [Prompt("Add.", {"context": "1, 2", "answer": 3})]
    assert load_prompts(path, column="frage", columns={"context": None}) == left
    for columns, sentence in [
        ({"prompt": "fraeg"}, "no column 'fraeg'"),
        ({"prompt": "frage", "context": None, "x": None}, "no row of .* has a column 'x'"),
        ({"chosen": "frage"}, "nothing is read as 'chosen'"),
        ({"prompt": "frage", "input": "frage"}, "'frage' two meanings"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            load_prompts(path, columns=columns)
    with pytest.raises(ValueError, match=r"prompt_column='answer' and data\.columns"):
        load_prompts(path, column="answer", columns={"prompt": "frage"})


def test_one_row_with_a_system_message_makes_conversations_of_all(write):
    path = write({"prompt": "a", "system": "Be brief."}, {"prompt": "b", "system": None})
    assert [p.content for p in load_prompts(path)] == [[SYSTEM, user("a")], [user("b")]]


def test_rows_without_a_prompt_are_left_out_where_that_is_wanted(write):
    path = write({"prompt": "a"}, {"prompt": ""}, {"prompt": "x\ud800"}, {"prompt": "b"})
    reading = Reading(path)
    with pytest.warns(UserWarning, match="2 rows are left out"):
        prompts = load_prompts(path, on_error="skip", reading=reading)
    assert [p.content for p in prompts] == ["a", "b"]
    assert reading.places == [f"{path}, line 1", f"{path}, line 4"]
    assert (reading.rows, len(reading.skipped)) == (4, 2)


def test_a_reading_says_which_columns_were_used(write):
    reading = Reading("a")
    load_prompts(write({"question": "a", "system": "s", "id": 1}), reading=reading)
    assert reading.columns == Columns(("question", "system"), ("id",))
    assert str(reading) == "a: columns for the reward alone: id"


def test_numbers_of_a_table_are_words_where_words_are_wanted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer\n007,1\n1e3,2\n")
    assert load_prompts(str(path)) == [Prompt("007", {"answer": 1}), Prompt("1e3", {"answer": 2})]
    path.write_text("frage,answer\n1.50,1\n")
    assert load_prompts(str(path), column="frage") == [Prompt("1.50", {"answer": 1})]


def test_given_prompts_may_be_texts_conversations_and_rows():
    given = ["a", [user("b")], {"prompt": "c", "answer": 4}, Prompt("d", {"e": 1})]
    assert gather_prompts(given, None) == [
        Prompt("a"),
        Prompt([user("b")]),
        Prompt("c", {"answer": 4}),
        Prompt("d", {"e": 1}),
    ]
    assert gather_prompts(["a"], None, chat=True) == [Prompt([user("a")])]
    with pytest.raises(ValueError, match=r"data\.prompts, prompt 2: .*not 5"):
        gather_prompts(["a", 5], None)
    with pytest.raises(ValueError, match=r"data\.prompts, prompt 1: half a character"):
        gather_prompts(["a\ud800"], None)
