"""Rows of preference data, as TRL and its users write them -> Pair and Scored."""

import re

import pytest

from datamodules.preferences.rows import Pair, Scored, as_pair, as_scored, split_common
from datamodules.text.prompts import Prompt


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}


def parts(row) -> tuple:
    pair = as_pair(row)
    return pair.prompt.content, pair.chosen, pair.rejected


# ------------------------------------------------------------------------ formats


def test_an_explicit_prompt_is_taken_as_it_stands():
    row = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "id": 7}
    assert as_pair(row) == Pair(Prompt("The sky is"), " blue.", " green.")


def test_an_explicit_prompt_may_be_empty():
    row = {"prompt": "", "chosen": "one two", "rejected": "one three"}
    assert parts(row) == ("", "one two", "one three")


@pytest.mark.parametrize("row", [{}, {"prompt": None}])
@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is", " blue.", " green.")),
        ("The sky is blue.", "The sky is black.", ("The sky is bl", "ue.", "ack.")),
        ("blue", "black", ("bl", "ue", "ack")),
        ("yes", "no", ("", "yes", "no")),
        ("no ", "yes", ("", "no ", "yes")),
        ("a b", "a b c", ("a ", "b", "b c")),  # one begins with the other: its last character
        ("a b c", "a b", ("a ", "b c", "b")),
        ("Q:  two", "Q:  three", ("Q:  t", "wo", "hree")),
        ("Q:  two", "Q:  one", ("Q: ", " two", " one")),
        (
            "Below is a task.\n\n### Response:\nHello there",
            "Below is a task.\n\n### Response:\nGo away",
            ("Below is a task.\n\n### Response:\n", "Hello there", "Go away"),
        ),
        (
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>",
            (
                "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
                "Yes<|im_end|>",
                "No<|im_end|>",
            ),
        ),
        (
            "问：天空是什么颜色？答：蓝色",
            "问：天空是什么颜色？答：绿色",
            ("问：天空是什么颜色？答：", "蓝色", "绿色"),
        ),
        (
            "\n\nHuman: Hi\n\nAssistant: Yes. Fine.",
            "\n\nHuman: Hi\n\nAssistant: No, bad.",
            ("\n\nHuman: Hi\n\nAssistant:", " Yes. Fine.", " No, bad."),
        ),
    ],
)
def test_an_implicit_prompt_is_the_common_text_as_in_trl(row, chosen, rejected, expected):
    assert parts(row | {"chosen": chosen, "rejected": rejected}) == expected


def test_an_implicit_prompt_is_the_common_messages():
    start = [SYSTEM, user("Hi"), says("Yes?"), user("Bye")]
    row = {"chosen": [*start, says("Bye!")], "rejected": [*start, says("No!")]}
    assert parts(row) == (start, [says("Bye!")], [says("No!")])


def test_a_conversation_has_a_prompt_and_two_answers():
    row = {
        "prompt": [SYSTEM, user("Hi")],
        "chosen": [says("Hello!")],
        "rejected": [says("Go away.")],
    }
    assert parts(row) == ([SYSTEM, user("Hi")], [says("Hello!")], [says("Go away.")])


def test_messages_keep_other_keys_and_may_be_any_sequence():
    row = {
        "prompt": ({"role": "user", "content": "Hi", "id": 1},),
        "chosen": ({"role": "assistant", "content": "x", "score": 3},),
        "rejected": [says("y")],
    }
    asked, said = user("Hi") | {"id": 1}, says("x") | {"score": 3}
    assert parts(row) == ([asked], [said], [says("y")])


def test_a_prompt_text_becomes_the_users_message_where_answers_are_messages():
    row = {"prompt": "Hi", "chosen": [says("x")], "rejected": [says("y")]}
    assert parts(row) == ([user("Hi")], [says("x")], [says("y")])


def test_answer_texts_become_the_assistants_messages_where_the_prompt_is_messages():
    row = {"prompt": [SYSTEM, user("Hi")], "chosen": "x", "rejected": "y"}
    assert parts(row) == ([SYSTEM, user("Hi")], [says("x")], [says("y")])


@pytest.mark.parametrize("prompt", ["Hi", [user("Hi")]])
def test_a_prompt_that_is_repeated_in_the_answers_is_taken_out(prompt):
    row = {
        "prompt": prompt,
        "chosen": [user("Hi"), says("x")],
        "rejected": [user("Hi"), says("y")],
    }
    assert parts(row) == ([user("Hi")], [says("x")], [says("y")])
    row["rejected"] = [says("y")]  # in one of them only
    assert parts(row) == ([user("Hi")], [says("x")], [says("y")])


def test_a_prompt_that_is_repeated_after_a_system_message_is_not_asked_twice():
    row = {
        "prompt": "Hi",
        "chosen": [SYSTEM, user("Hi"), says("x")],
        "rejected": [SYSTEM, user("Hi"), says("y")],
    }
    prompt, chosen, rejected = parts(row)
    assert [*prompt, *chosen] == row["chosen"]
    assert [*prompt, *rejected] == row["rejected"]


def test_an_empty_prompt_text_adds_no_message():
    row = {"prompt": "", "chosen": [user("a"), says("x")], "rejected": [user("a"), says("y")]}
    assert parts(row) == ([user("a")], [says("x")], [says("y")])


def test_split_common_loses_nothing():
    for a, b in [("one two three", "one two four"), ("x", "y"), ("a b ", "a b c"), ("", "x")]:
        prompt, chosen, rejected = split_common(a, b)
        assert (prompt.content + chosen, prompt.content + rejected) == (a, b)


# ------------------------------------------------------------------------ numbers


ROW = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.5, 0.5), (2, 2.0), ("1.5", 1.5), (-1, -1.0), (0, 0.0)]
    + [(missing, None) for missing in (None, "", " ", float("nan"))],
)
def test_a_margin_is_a_number_or_missing(margin, expected):
    assert as_pair(ROW | {"margin": margin}).margin == expected
    assert as_pair(ROW).margin is None


HUGE = pytest.param(10**400, id="no float holds it")


@pytest.mark.parametrize("margin", ["large", [1], float("inf"), "-inf", {}, HUGE])
def test_a_margin_that_is_no_finite_number_is_refused(margin):
    with pytest.raises(ValueError, match="margin"):
        as_pair(ROW | {"margin": margin})


# ------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("missing", ["chosen", "rejected"])
def test_a_missing_column_is_named_with_those_there_are(missing):
    row = {**ROW, "extra": 1}
    del row[missing]
    there = r".*".join(sorted(row))
    with pytest.raises(ValueError, match=rf"{missing!r}.*{there}"):
        as_pair(row)


def test_columns_that_are_no_texts_can_be_named_too():
    with pytest.raises(ValueError, match=r"'rejected'.*chosen"):
        as_pair({1: "from YAML", "chosen": "c"})


@pytest.mark.parametrize("row", ["text", 5, None, ["a", "b", "c"]])
def test_a_row_without_columns_is_refused(row):
    with pytest.raises(ValueError, match="columns"):
        as_pair(row)
    with pytest.raises(ValueError, match="columns"):
        as_scored(row, ["h"])


@pytest.mark.parametrize("side", ["c", [says("c")]])
def test_equal_sides_are_refused(side):
    with pytest.raises(ValueError, match="equal"):
        as_pair({"prompt": "p", "chosen": side, "rejected": side})
    with pytest.raises(ValueError, match="equal"):
        as_pair({"chosen": side, "rejected": side})


@pytest.mark.parametrize("name", ["chosen", "rejected"])
@pytest.mark.parametrize("empty", ["", " \n", [], [says("")], [says(None)], [says(" ")]])
def test_an_empty_response_is_refused_by_name(name, empty):
    row = {"prompt": "p", "chosen": "c", "rejected": "c"}
    if not isinstance(empty, str):
        row |= {"chosen": [says("c")], "rejected": [says("c")]}
    with pytest.raises(ValueError, match=f"{name}.*empty"):
        as_pair(row | {name: empty})


def test_a_response_that_an_implicit_prompt_leaves_empty_is_refused():
    for chosen, rejected, name in [
        ("a ", "a b", "chosen"),
        ([user("a")], [user("a"), says("x")], "chosen"),
        ([user("a"), says("x")], [user("a")], "rejected"),
    ]:
        with pytest.raises(ValueError, match=f"{name}.*empty"):
            as_pair({"chosen": chosen, "rejected": rejected})


def test_a_response_that_only_repeats_the_prompt_is_refused():
    row = {"prompt": "Hi", "chosen": [user("Hi"), says("x")], "rejected": [user("Hi")]}
    with pytest.raises(ValueError, match=r"rejected.*empty"):
        as_pair(row)


WRONG = [5, None, ["text"], [{"role": "user"}], [{"content": "x"}], {"content": "alone"}, [5]]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_a_side_that_is_neither_text_nor_messages_is_refused_by_name(name, wrong):
    with pytest.raises(ValueError, match=f"{name}.*'role' and 'content'"):
        as_pair(ROW | {name: wrong})


@pytest.mark.parametrize("wrong", [w for w in WRONG if w is not None])
def test_a_prompt_that_is_neither_text_nor_messages_is_refused(wrong):
    with pytest.raises(ValueError, match=r"prompt.*'role' and 'content'"):
        as_pair(ROW | {"prompt": wrong})


def test_text_against_messages_is_refused():
    with pytest.raises(ValueError, match=r"chosen.*rejected.*both"):
        as_pair({"prompt": "p", "chosen": "c", "rejected": [says("r")]})


# ------------------------------------------------------------------------ scores


def test_a_scored_row_holds_a_number_or_none_for_each_objective_in_their_order():
    row = {"prompt": "p", "response": " r", "safe": "0.5", "kind": 1, "true": None, "x": "unused"}
    assert as_scored(row, ["kind", "true", "safe"]) == Scored(Prompt("p"), " r", (1.0, None, 0.5))
    for missing in (None, "", float("nan")):
        assert as_scored(row | {"kind": missing}, ["kind", "safe"]).targets == (None, 0.5)


def test_a_scored_row_may_be_a_conversation_or_a_mixture():
    expected = Scored(Prompt([user("Hi")]), [says("x")], (1.0,))
    for prompt, response in [
        ([user("Hi")], [says("x")]),
        ("Hi", [says("x")]),
        ([user("Hi")], "x"),
        ("Hi", [user("Hi"), says("x")]),
    ]:
        assert as_scored({"prompt": prompt, "response": response, "h": 1}, ["h"]) == expected


SCORED = {"prompt": "p", "response": "r", "h": 1}


@pytest.mark.parametrize("missing", ["prompt", "response", "h"])
def test_a_missing_column_of_a_scored_row_is_named_with_those_there_are(missing):
    row = {**SCORED, "extra": 1}
    del row[missing]
    with pytest.raises(ValueError, match=rf"{missing!r}.*" + r".*".join(sorted(row))):
        as_scored(row, ["h"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"response": " "}, r"response.*empty"),
        ({"response": [user("p")]}, r"response.*empty"),  # nothing but the prompt
        ({"response": 5}, r"response.*'role' and 'content'"),
        ({"h": "good"}, re.escape("h='good'")),
        ({"h": float("inf")}, "h="),
        ({"h": None}, r"score.*h"),
    ],
)
def test_mistakes_in_a_scored_row_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        as_scored(SCORED | change, ["h"])
