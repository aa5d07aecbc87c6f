"""Generated problems: distinct, split without overlap, and their answers follow from them."""

import random
import re

import pytest

from datamodules.environments.math_problems import LEVELS, generate


@pytest.mark.parametrize("level", LEVELS)
def test_problems_are_distinct_and_none_is_on_both_sides(level):
    train, held_out = generate(level, None, 200, seed=0)
    questions = [problem.question for problem in (*train, *held_out)]
    assert len(set(questions)) == len(questions) and len(held_out) == 200
    assert not {problem.key for problem in train} & {problem.key for problem in held_out}
    assert len(train) >= 200


def test_a_sum_in_the_other_order_is_on_the_same_side():
    train, held_out = generate(1, None, 200, seed=2)
    turned = {" + ".join(reversed(p.question.split(" + "))) for p in held_out if "+" in p.question}
    assert len(turned) > 50 and not turned & {problem.question for problem in train}


def test_level_1_has_every_sum_once():
    train, held_out = generate(1, None, 200, seed=5)
    numbers = range(1, 21)
    pairs = [(a, b) for a in numbers for b in numbers if min(a, b) <= 9]
    every = {f"{a} + {b}" for a, b in pairs} | {f"{a} - {b}" for a, b in pairs if a >= b}
    assert {problem.question for problem in (*train, *held_out)} == every
    assert len(every) == 423


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_answers_of_expressions_are_their_values(level):
    allowed = {1: "+-", 2: "+-", 3: "+-*", 4: "+-*()"}[level]
    signs = set()
    for problem in generate(level, 500 if level > 1 else None, 200, seed=1)[0]:
        assert re.fullmatch(rf"[\d {re.escape(allowed)}]+", problem.question)
        assert eval(problem.question) == problem.answer
        signs |= set(problem.question) & set("+-*(")
        if level < 4:
            assert problem.answer >= 0
    assert signs == set(allowed) - {")"}


@pytest.mark.parametrize("level", [5, 6])
def test_answers_of_word_problems_follow_from_their_words(level):
    for problem in generate(level, 500, 200, seed=1)[0]:
        have = 0
        for sentence in problem.question.split(". "):
            numbers = [int(number) for number in re.findall(r"\d+", sentence)]
            if "boxes" in sentence:
                have = numbers[0] * numbers[1]
            elif "finds" in sentence:
                have += numbers[0]
            elif "gives" in sentence:
                have -= numbers[0]
            elif numbers:
                have = numbers[0]
        assert have == problem.answer > 0
        assert problem.question.endswith("?")


def test_a_word_problem_in_other_names_is_the_same_problem():
    held_out = {p.key for p in generate(5, None, 200, seed=0)[1]}
    assert any("finds" in key for key in held_out)
    for key in held_out:
        assert not re.search(r"Mia|Tom|apples|pens", key) and re.search(r"\d", key)


def test_a_seed_makes_the_same_problems_and_another_seed_others():
    random.seed(1)
    first = generate(2, 50, 20, seed=7)
    random.seed(2)
    assert generate(2, 50, 20, seed=7) == first
    assert generate(2, 50, 20, seed=8) != first
    more = generate(2, 500, 20, seed=7)
    assert more[1] == first[1] and more[0][:50] == first[0]
