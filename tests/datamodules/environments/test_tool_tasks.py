"""The tasks with tools, arithmetic and booking, played by scripted policies."""

import json
import random
import time

import pytest
from tool_helpers import SMALL, TOKENIZER, Counter, answer_to, ids, play

from datamodules.environments.booking import BookingEnv
from datamodules.environments.calculator import CalculatorEnv, calculator, chain, distinct, evaluate
from datamodules.environments.toolbox import as_call
from datamodules.environments.tools import ToolEnv, solved

# -------------------------------------------------------------------------- calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(12 + 5) * 3", "51"), ("2 ** 10", "1024"), ("7 / 2", "3.5"), ("8 / 2", "4"),
        ("-7 // 2", "-4"), ("0.1 + 0.2", "0.3"), ("+5 % 3", "2"), (" 3 × 4 − 6 ÷ 2 ", "9"),
        ("2 ** -1", "0.5"), ("0 ** 0", "1"), ("1e3", "1000"),
    ],
)  # fmt: skip
def test_the_calculator_computes(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')", "9**9**9**9", "9**99**9", "(9**80)**80", "1e999",
        "-" * 199 + "1", "(" * 150 + "1" + ")" * 49, "1" * 201, "1" * 150, "a",
        "'a' * 3", "[1] * 3",
        "True", "1j", "(-8) ** 0.5", "1 < 2", "2; 3", "", "2 +", "lambda: 1", "x := 3",
        "1 if 1 else 2",
        "1\x00", "2 @ 3", "1 << 99", "~1", "abs(1)", "(1).real", "2^3",
    ],
)  # fmt: skip
def test_the_calculator_refuses_in_no_time_what_is_no_arithmetic_of_bounded_size(expression):
    began = time.thread_time()
    if expression == "-" * 199 + "1":
        assert evaluate(expression) == -1  # deep, but within bounds
    else:
        with pytest.raises(ValueError):
            evaluate(expression)
    assert time.thread_time() - began < 0.2


def test_dividing_by_zero_is_an_error_for_the_model():
    env = CalculatorEnv(TOKENIZER, **SMALL)
    env.reset()
    for expression in ("1 / 0", "1 % 0", "0 ** -1", "9**9**9"):
        result = env.respond(ids(as_call("calculator", expression=expression)))
        if not result.done:
            assert "Error: calculator: " in answer_to(env, result)
    assert result.metrics["tool_errors"] == 4


def test_a_scripted_policy_solves_chains_with_the_calculator():
    env = CalculatorEnv(TOKENIZER, difficulty=4, **SMALL)
    for index in range(len(env)):
        episode = env.fork()
        question = episode.reset(index).metadata["messages"][-1]["content"]
        expression = question.removeprefix("What is ").removesuffix("?")
        call = as_call("calculator", expression=expression)
        right = answer_to(episode, episode.respond(ids(call)))
        assert int(right) == eval(expression)
        assert play(env, index, call, f"It is {right}.") == (
            1.0,
            {"turns": 2, "tool_calls": 1, "tool_errors": 0, "truncated": 0, "correct": 1.0},
        )
        assert play(env, index, f"{int(right):,}")[0] == 1.0  # without the calculator
        for wrong in (f"{int(right) + 1}", f"{right}1", "", "no idea", f"{right} or 0"):
            assert play(env, index, wrong)[0] == 0.0
        assert play(env, index, *[call] * 4)[0] == 0.0


@pytest.mark.parametrize("steps", range(1, 21))
def test_a_chain_has_as_many_steps_as_its_difficulty_and_reads_from_left_to_right(steps):
    for seed in range(20):
        expression = chain(steps, random.Random(seed)).expression
        value, sign = 0, "+"
        for part in expression.replace("(", "").replace(")", "").split():
            if part in "+-*":
                sign = part
            else:
                value = {"+": value + int(part), "-": value - int(part), "*": value * int(part)}[
                    sign
                ]
        assert value == evaluate(expression)
        assert sum(expression.count(sign) for sign in "+-*") == steps


def test_examples_are_shown_solved_and_are_no_task_themselves():
    env = CalculatorEnv(TOKENIZER, demonstrations=2, **SMALL)
    messages = env.reset(0).metadata["messages"]
    roles = ["user", "assistant", "tool", "assistant"]
    assert [m["role"] for m in messages] == ["system", *roles, *roles, "user"]
    for question, call, result, answer in (messages[1:5], messages[5:9]):
        expression = question["content"].removeprefix("What is ").removesuffix("?")
        assert call["content"] == as_call("calculator", expression=expression)
        assert result["content"] == str(eval(expression))
        assert answer["content"] == f"The answer is {eval(expression)}."
        assert question not in [scene.messages[-1] for scene in env.scenes]
    prompt = env.reset(0).prompt
    assert prompt.index("<tool_response>") < prompt.rindex("[user]")
    assert prompt.count("[system]") == 1 and "[tool]" not in prompt
    assert len(CalculatorEnv(TOKENIZER, demonstrations=0, **SMALL).reset(0).prompt) < len(prompt)
    scene = BookingEnv(TOKENIZER, **SMALL).scenes[0]
    assert "booked" in solved(scene)[4]["content"] and scene.bookings == {}
    with pytest.raises(NotImplementedError, match="Counter has no solution"):
        ToolEnv(TOKENIZER, [Counter()], examples=[Counter()])


@pytest.mark.parametrize("difficulty", [1, 2, 3])
@pytest.mark.parametrize("make", [CalculatorEnv, BookingEnv])
def test_what_is_shown_as_the_solution_is_right(make, difficulty):
    env = make(TOKENIZER, difficulty=difficulty, **SMALL)
    for index, scene in enumerate(env.scenes):
        reward, metrics = play(env, index, *scene.solution())
        assert (reward, metrics["tool_errors"]) == (1.0, 0.0)


@pytest.mark.parametrize("make", [CalculatorEnv, BookingEnv])
def test_problems_follow_from_the_seed_and_the_held_out_ones_are_not_trained_on(make):
    def prompts(**options):
        env = make(TOKENIZER, **SMALL | options)
        return [str(vars(scene)) for scene in env.scenes]

    assert make(TOKENIZER, **SMALL).held_out == range(20, 25)
    assert prompts() == prompts()
    assert not set(prompts()) & set(prompts(seed=1))
    many = prompts(num_problems=800, num_held_out=200)
    assert len(set(many)) == 1000
    for options, names in (
        ({"difficulty": 0}, "env.difficulty=0"),
        ({"num_problems": 0}, "env.num_problems=0"),
        ({"num_held_out": -1}, "env.num_held_out=-1"),
        ({"demonstrations": -1}, "env.demonstrations=-1"),
    ):
        with pytest.raises(ValueError, match=names):
            make(TOKENIZER, **SMALL | options)


def test_more_problems_than_there_are_is_an_error_that_says_how_many():
    def one_of_three(generator):
        return chain(1, random.Random(generator.randint(1, 3)))

    made = distinct(one_of_three, 1, 1, 1, seed=0)
    assert [len(part) for part in made.values()] == [2, 1, 1]
    with pytest.raises(ValueError, match=r"env\.num_problems=2 .*only 3 different"):
        distinct(one_of_three, 2, 1, 1, seed=0)


# ----------------------------------------------------------------------------- booking


def rows_of(episode, city: str) -> list[dict]:
    return json.loads(answer_to(episode, episode.respond(ids(as_call("search_hotels", city=city)))))


@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_a_scripted_guest_books_the_right_hotel(difficulty):
    env = BookingEnv(TOKENIZER, difficulty=difficulty, **SMALL | {"max_turns": 6})
    for index in range(len(env)):
        episode = env.fork()
        wish = episode.reset(index).metadata["messages"][-1]["content"]
        city = wish.split("hotel in ")[1].split(",")[0].split(" with")[0].split(" that")[0]
        stars = int(wish.split("at least ")[1][0]) if "stars" in wish else 0
        nights = int(wish.split("for ")[1].split()[0])
        rows = [row for row in rows_of(episode, city) if row["stars"] >= stars]
        assert rows == sorted(rows, key=lambda row: row["price"])
        answers = []
        for row in rows:
            result = episode.respond(ids(as_call("book", hotel_id=row["hotel_id"], nights=nights)))
            answers.append(answer_to(episode, result).split()[0])
            if answers[-1] == "booked":
                break
        assert answers == ["Error:", "booked"] if difficulty == 3 else ["booked"]
        assert episode.step(ids("It is booked.")).reward == 1.0


def test_from_the_second_level_on_the_cheapest_hotel_is_not_always_the_right_one():
    for difficulty, at_least in ((1, 0), (2, 8), (3, 25)):
        env = BookingEnv(TOKENIZER, difficulty=difficulty, **SMALL)
        others = 0
        for scene in env.scenes:
            ((hotel_id, _),) = scene.goal.items()
            goal = next(hotel for hotel in scene.hotels if hotel.hotel_id == hotel_id)
            cheapest = min((h for h in scene.hotels if h.city == goal.city), key=lambda h: h.price)
            others += goal != cheapest
        assert others >= at_least and (difficulty > 1 or others == 0)


def goal_of(env, index: int) -> dict:
    ((hotel_id, nights),) = env.scenes[index].goal.items()
    return {"hotel_id": hotel_id, "nights": nights}


def test_only_the_final_state_counts():
    env = BookingEnv(TOKENIZER, **SMALL | {"max_turns": 6})
    goal = goal_of(env, 0)
    other = next(h.hotel_id for h in env.scenes[0].hotels if h.hotel_id != goal["hotel_id"])
    right, wrong = as_call("book", **goal), as_call("book", hotel_id=other, nights=goal["nights"])
    undo = as_call("cancel", hotel_id=other)
    assert play(env, 0, "I booked it for you, promised!") == (
        0.0,
        {
            "turns": 1,
            "tool_calls": 0,
            "tool_errors": 0,
            "truncated": 0,
            "correct": 0,
            "bookings": 0,
        },
    )
    assert play(env, 0, right, "done")[0] == 1.0
    assert play(env, 0, wrong, right, "done")[0] == 0.0
    assert play(env, 0, wrong, undo, right, "done")[0] == 1.0
    assert play(env, 0, right, right, "done")[0] == 1.0  # the second is refused
    assert play(env, 0, as_call("book", **goal | {"nights": goal["nights"] + 1}), "done")[0] == 0.0
    assert env.scenes[0].bookings == {}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("book", {"hotel_id": 9999, "nights": 2}, "there is no hotel 9999"),
        ("book", {"hotel_id": 0, "nights": 10**9}, "there is no hotel 0"),
        ("book", {"nights": 0}, "nights must be 1 to 30"),
        ("book", {"nights": -3}, "nights must be 1 to 30"),
        ("book", {"nights": 31}, "nights must be 1 to 30"),
        ("cancel", {}, "is not booked"),
        ("search_hotels", {"city": "Atlantis"}, "no such hotel in 'Atlantis'"),
        ("search_hotels", {"city": ""}, "no such hotel in ''"),
    ],
)
def test_impossible_bookings_are_refused(name, arguments, message):
    env = BookingEnv(TOKENIZER, **SMALL)
    env.reset(0)
    if name != "search_hotels":
        arguments = {"hotel_id": goal_of(env, 0)["hotel_id"]} | arguments
    result = env.respond(ids(as_call(name, **arguments)))
    assert message in answer_to(env, result)
    assert env.scene.bookings == {}


def test_the_search_shows_neither_other_cities_nor_what_is_full_and_keeps_to_the_price():
    env = BookingEnv(TOKENIZER, difficulty=3, **SMALL)
    env.reset(0)
    full = next(hotel for hotel in env.scene.hotels if hotel.full)
    rows = rows_of(env, f" {full.city.upper()} ")
    assert {"hotel_id", "name", "stars", "price"} == set(rows[0]) and len(rows) == 4
    said = as_call("search_hotels", city=full.city, max_price=rows[1]["price"])
    assert json.loads(answer_to(env, env.respond(ids(said)))) == rows[:2]
    assert "fully booked" in answer_to(
        env, env.respond(ids(as_call("book", hotel_id=full.hotel_id, nights=2)))
    )
