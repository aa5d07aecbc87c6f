"""The table of answers: what is right and what is wrong, and why; and what holds for all of them.

``answers/*.jsonl`` are the cases, one a line: response, gold, whether it is right, and the reason.
"""

import json
from itertools import product
from pathlib import Path

import pytest

from datamodules import is_correct

TABLES = sorted(Path(__file__).with_name("answers").glob("*.jsonl"))
ROWS = [json.loads(line) for path in TABLES for line in path.read_text("utf-8").splitlines()]
PATIENCE_S = 30.0
"""Allowed to computer algebra here: a busy machine is no wrong verdict."""

FORMS = {  # how models claim an answer
    "alone": "{}",
    "boxed": "So we get $\\boxed{{{}}}$.",
    "framed": "\\fbox{{{}}}",
    "mark": "Steps here.\n#### {}",
    "said": "The answer is {}.",
    "said in bold": "**Answer:** {}",
    "headed": "## Final Answer\n\n{}",
    "tagged": "<reasoning>Is it 3?</reasoning>\n<answer>{}</answer>",
    "after thoughts": "<think>Is it 3? \\boxed{{3}}</think>\n\nThe final answer is {}",
    "explained": "Answer: {} because that is so",
    "doubly": "Final Answer: The final answer is ${}$. I hope it is correct.",
}
SPELLINGS = {  # each gold in spellings that stand in prose and in a box alike
    "5": ("5", "+5", "5.0", "05", "\\mathbf{5}", "５", "\\$5", "10/2 = 5", "x = 5", "\\approx 5"),
    "-3": ("-3", "–3", "−3", "-3.00", "\\text{-3}", "x=-3"),
    "0.5": ("0.5", ".5", "1/2", "\\frac12", "\\frac{1}2", "\\cfrac{1}{2}", "½", "50\\%"),
    "-3/4": ("-3/4", "\\frac{-3}{4}", "\\frac{3}{-4}", "-\\frac34", "-0.75", "−¾"),
    "1234567": ("1,234,567", "1234567", "1{,}234{,}567", "1\\,234\\,567", "1.234567 \\times 10^6"),
    "1000000": ("10^6", "10^{6}", "1e6", "10⁶", "1 \\times 10^{6}", "1000 \\text{ thousand}"),
    "7/2": ("7/2", "3\\frac12", "3\\tfrac{1}{2}", "3½", "3 1/2", "3.5", "\\frac{7}{2}"),
}
MADE_WRONG = (  # what makes of a claimed number another, or none
    "{} or 9876",
    "{}, 9876",
    "{} and 9876",
    "{}; 9876",
    "{} to 9876",
    "{} 9876",
    "{}?",
    "maybe {}",
    "not {}",
    "more than {}",
    "x < {}",
    "\\geq {}",
    "{} thousand",
    "{} out of 9876",
    "{} + 9876",
    "\\pm {}",
    "{}x",
    "{} is wrong",
    "twice {}",
)


def verdict(response, gold):
    return is_correct(response, gold, PATIENCE_S)


def in_form(form, answer):
    return FORMS[form].format(answer)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_case_of_the_table(path):
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    false = [row for row in rows if verdict(row["response"], row["gold"]) is not row["right"]]
    assert false == []


def test_the_table_has_hundreds_of_cases_of_both_kinds_each_once():
    assert len(TABLES) >= 4 and len(ROWS) >= 1000
    assert sum(row["right"] for row in ROWS) >= 400
    assert sum(not row["right"] for row in ROWS) >= 400
    assert len({(row["response"], row["gold"]) for row in ROWS}) == len(ROWS)
    assert all(row["why"].strip() for row in ROWS)


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_in_every_form_is_right_for_its_gold_alone(form):
    for gold, spellings in SPELLINGS.items():
        for spelling in spellings:
            if spelling[0] == "3" and " " in spelling and form in ("doubly",):
                continue  # digits between dollars apart from a word
            response = in_form(form, spelling)
            assert [other for other in SPELLINGS if verdict(response, other)] == [gold], response


def test_golds_may_be_spelt_as_claims_are():
    for spellings in SPELLINGS.values():
        for one, other in product(spellings, spellings):
            assert verdict(f"\\boxed{{{one}}}", other), (one, other)


@pytest.mark.parametrize("change", MADE_WRONG)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "alone"])
def test_a_claim_that_says_another_thing_does_not_stay_right(form, change):
    for gold in ("5", "-3", "0.5", "1234567"):
        assert not verdict(in_form(form, change.format(gold)), gold)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "after thoughts"])
def test_a_thought_is_no_claim_in_any_form(form):
    said = in_form(form, "7")
    assert verdict(said, "7")
    assert not verdict(f"<think>{said}", "7")
    assert not verdict(f"<think>{said}</think>", "7")
    assert not verdict(f"{said}</think>\nThe answer is 8", "7")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "alone"])
def test_of_two_claims_the_last_counts(form):
    said = f"{in_form(form, '7')}\n\nSome more words here.\n\n"
    assert verdict(f"{said}The answer is 8.", "8")
    assert not verdict(f"{said}The answer is 8.", "7")


@pytest.mark.parametrize("letter", "ABCDEFGHIJ")
def test_labels_are_the_same_however_gold_and_claim_set_them(letter):
    spellings = (
        letter,
        f"({letter})",
        f"\\text{{({letter})}}",
        f"\\mathrm{{{letter}}}",
        f"{letter}.",
    )
    other = "A" if letter != "A" else "B"
    for gold, said in product(spellings, spellings):
        for form in ("boxed", "mark", "said in bold", "tagged", "after thoughts"):
            assert verdict(in_form(form, said), gold), (form, said, gold)
            assert not verdict(in_form(form, said.replace(letter, other)), gold)
            assert not verdict(in_form(form, f"{said} or {other}"), gold)
