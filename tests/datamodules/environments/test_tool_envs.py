"""Environments with tools, played by scripted policies: perfect, wrong and adversarial ones."""

import json
import random
import time

import pytest
import torch

from datamodules.environments.booking import BookingEnv
from datamodules.environments.calculator import CalculatorEnv, calculator, chain, distinct, evaluate
from datamodules.environments.toolbox import MAX_ANSWER, as_call
from datamodules.environments.tools import Scene, ToolEnv, solved
from datamodules.rollouts.episodes import play as play_episodes
from datamodules.types import Response, sequence_of
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
SMALL = {"num_problems": 20, "num_held_out": 5, "max_length": 6000}


class Counter(Scene):
    """Counts up; the goal is to reach two."""

    messages = ({"role": "user", "content": "Count to two."},)

    def __init__(self):
        self.count, self.before = 0, 0

    def tools(self):
        return [self.add, self.describe, self.fail]

    def add(self, number: int) -> int:
        """Add.

        Args:
            number: what to add.
        """
        self.count += number
        return self.count

    def describe(self, length: int = 3) -> dict:
        """Describe.

        Args:
            length: characters.
        """
        return {"text": "x" * length}

    def fail(self) -> str:
        """Raise."""
        raise RuntimeError("it broke")

    def judge(self, answer):
        return float(self.count == 2), {"correct": float(self.count == 2), "said": float(answer)}

    def turn_reward(self):
        gained, self.before = self.count - self.before, self.count
        return gained / 10


def counter(**options) -> ToolEnv:
    return ToolEnv(TOKENIZER, [Counter()], **{"max_length": 8000} | options)


def ids(text: str, end: bool = True) -> torch.Tensor:
    return torch.tensor(TOKENIZER(text)["input_ids"] + [EOS] * end)


def answer_to(env, result) -> str:
    """What the environment wrote last."""
    text = TOKENIZER.decode(result.next_observation.input_ids)
    return text[text.rindex("<tool_response>") : text.rindex("</tool_response>")].split("\n")[1]


def play(env: ToolEnv, index: int, *said: str):
    """(total reward, metrics) of one episode."""
    episode = env.fork()
    episode.reset(index)
    for text in said:
        result = episode.respond(ids(text))
        if result.done:
            break
    assert result.done, "the script ended before the episode"
    reward, metrics = env.score([episode])[0]
    return reward, result.metrics | metrics


# --------------------------------------------------------------------------- the loop


def test_an_episode_of_several_turns_rewards_each_turn_and_the_end():
    env = counter()
    first = env.reset()
    assert "Count to two." in first.prompt and "- add(number): Add." in first.prompt
    result = env.step(ids("Let me. " + as_call("add", number=2)))
    assert (result.done, result.reward, answer_to(env, result)) == (False, 0.2, "2")
    assert result.next_observation.input_ids[: len(first.input_ids)].equal(first.input_ids)
    assert result.metrics == {"turns": 1, "tool_calls": 1, "tool_errors": 0, "truncated": 0}
    result = env.step(ids("7"))
    assert (result.done, result.reward, result.next_observation) == (True, 1.0, None)
    assert result.metrics == {
        "turns": 2, "tool_calls": 1, "tool_errors": 0, "truncated": 0, "correct": 1.0, "said": 7.0
    }  # fmt: skip
    assert env.render().endswith("[assistant]7<eos>")
    with pytest.raises(RuntimeError, match="reset"):
        env.respond(ids("8"))


MISTAKES = {
    "<tool_call>{": "no valid JSON",
    "<tool_call>": "no valid JSON",
    "<tool_call>5</tool_call>": "must have the form",
    '<tool_call>{"arguments": {}}</tool_call>': "must have the form",
    '<tool_call>{"name": "add", "arguments": [1]}</tool_call>': "must have the form",
    '<tool_call>{"name": ["add"]}</tool_call>': "must have the form",
    '<tool_call>{"name": "add", "arguments": {"number": NaN}}</tool_call>': "NaN is no number",
    "<tool_call>" + "[" * 3000 + "</tool_call>": "no valid JSON",
    '<tool_call>{"name": "add", "arguments": {"number": ' + "9" * 5000 + "}}": "no valid JSON",
    as_call(
        "subtract", number=1
    ): "there is no tool 'subtract'; there are ['add', 'describe', 'fail'",
    as_call("__init__"): "there is no tool",
    as_call("add"): "add: 'number' is a required property",
    as_call("add", number="1"): "add: '1' is not of type 'integer'",
    as_call("add", number=True): "add: True is not of type 'integer'",
    as_call("add", number=1, self=2): "add: Additional properties are not allowed ('self' was",
    as_call("add", number="9" * 5000): "add: '9999",
    as_call("fail"): "fail: RuntimeError: it broke",
}


@pytest.mark.parametrize("said", MISTAKES, ids=lambda said: said[:60])
def test_a_mistake_is_told_to_the_model_and_changes_nothing(said):
    env = counter(error_penalty=0.5, max_length=20_000)
    env.reset()
    result = env.respond(ids(said))
    assert not result.done and result.reward == -0.5
    assert answer_to(env, result).startswith("Error: ")
    assert MISTAKES[said] in answer_to(env, result)
    assert len(answer_to(env, result)) < 350  # a long call is not repeated
    assert result.metrics["tool_calls"] == result.metrics["tool_errors"] == 1
    assert env.scene.count == 0
    env.respond(ids(as_call("add", number=2)))
    assert env.step(ids("0")).reward == 1.0  # and the episode goes on


def test_several_calls_in_one_response_are_answered_in_order_and_a_list_of_one_is_a_call():
    env = counter(stop_sequences=[])
    assert env.stop_sequences == ()
    env.reset()
    result = env.respond(
        ids(f"{as_call('add', number=1)}\n{as_call('fail')} {as_call('add', number=4)}")
    )
    assert result.metrics["tool_calls"] == 3 and result.metrics["tool_errors"] == 1
    written = TOKENIZER.decode(result.next_observation.input_ids)
    assert written.endswith(
        "<eos>[user]<tool_response>\n1\n</tool_response>\n<tool_response>\nError: fail:"
        " RuntimeError: it broke\n</tool_response>\n<tool_response>\n5\n</tool_response>"
        "<eos>[assistant]"
    )
    result = env.respond(
        ids('<tool_call>[{"name": "add", "arguments": {"number": 2}}]</tool_call>')
    )
    assert answer_to(env, result) == "7"


def test_the_bonus_is_given_once_for_the_first_call_that_worked():
    env = counter(tool_bonus=1.0, max_turns=9)
    env.reset()
    said = (as_call("fail"), as_call("add", number=0), as_call("add", number=0))
    assert [env.respond(ids(text)).reward for text in said] == [0.0, 1.0, 0.0]


def test_a_long_answer_of_a_tool_is_shortened_and_says_so():
    env = counter()
    env.reset()
    text = answer_to(env, env.respond(ids(as_call("describe", length=5000))))
    assert len(text) < MAX_ANSWER + 40 and text.endswith("... (5012 characters)")
    assert answer_to(env, env.respond(ids(as_call("describe")))) == '{"text": "xxx"}'


def test_the_last_turns_call_is_executed_and_ends_the_episode():
    env = counter(max_turns=2)
    env.reset()
    assert not env.respond(ids(as_call("add", number=1))).done
    result = env.respond(ids(as_call("add", number=1)))
    assert result.done and result.info == {"truncated": True} and result.metrics["truncated"] == 1
    with pytest.raises(ValueError, match="could not convert"):  # the judge got no words at all
        env.score([env])
    assert env.scene.count == 2


def test_an_episode_ends_where_its_context_leaves_no_room():
    env = counter()
    start = len(env.reset().input_ids)
    said = ids(as_call("add", number=2))
    grown = len(env.respond(said).next_observation.input_ids)
    for room, done in ((0, True), (1, False)):
        tight = counter(max_length=grown + room)
        tight.reset()
        result = tight.respond(said)
        assert (result.done, result.metrics["truncated"]) == (done, float(done))
    with pytest.raises(ValueError, match=rf"env.max_length={start}: raise it"):
        counter(max_length=start).reset()
    short = counter(max_length=start + 3)
    short.reset()
    with pytest.raises(ValueError, match=rf"env.max_length is {start + 3}: raise it"):
        short.respond(ids("1234", end=False))


@pytest.mark.parametrize(
    ("said", "end", "truncated"), [("4", True, False), ("4", False, True), ("4#", False, False)]
)
def test_an_answer_without_its_end_is_called_truncated(said, end, truncated):
    env = counter(stop_sequences=["#"])
    env.reset()
    result = env.respond(ids(said, end))
    assert result.done and result.info["truncated"] is truncated


def test_nothing_after_the_end_of_turn_counts():
    env = counter()
    env.reset()
    result = env.respond(
        torch.tensor([*ids("5").tolist(), *ids(as_call("add", number=2)).tolist()])
    )
    assert result.done and env.scene.count == 0


def test_forks_never_share_state_even_of_a_running_episode():
    env = counter()
    episodes = [env.fork() for _ in range(3)]
    for number, episode in enumerate(episodes):
        episode.reset(0)
        episode.respond(ids(as_call("add", number=number)))
    assert [e.scene.count for e in episodes] == [0, 1, 2]
    assert env.scenes[0].count == 0
    left, right = episodes[1].fork(), episodes[1].fork()
    left.respond(ids(as_call("add", number=1)))
    right.respond(ids(as_call("add", number=5)))
    assert [e.scene.count for e in (episodes[1], left, right)] == [1, 2, 6]
    assert "6" not in left.render() and left.render().startswith(episodes[1].render())
    assert episodes[1].reset(0) is not None and left.scene.count == 2


def test_reset_takes_scenes_in_turn_or_by_number():
    env = CalculatorEnv(TOKENIZER, **SMALL)
    prompts = [env.reset().prompt for _ in range(26)]
    assert len(env) == 25 and prompts[25] == prompts[0] and len(set(prompts)) == 25
    assert env.reset(3).prompt == prompts[3] and env.reset().prompt == prompts[1]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"max_turns": 0}, "env.max_turns=0"),
        ({"error_penalty": -1.0}, "env.error_penalty=-1.0"),
        ({"stop_sequences": [""]}, "env.stop_sequences"),
        ({"on_error": "stop"}, "env.on_error='stop'"),
        ({"timeout_s": 0}, "env.timeout_s=0"),
        ({"scenes": []}, "scenes is empty"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options, names):
    with pytest.raises(ValueError, match=names):
        ToolEnv(**{"tokenizer": TOKENIZER, "scenes": [Counter()]} | options)


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
    began = time.perf_counter()
    if expression == "-" * 199 + "1":
        assert evaluate(expression) == -1  # deep, but within bounds
    else:
        with pytest.raises(ValueError):
            evaluate(expression)
    assert time.perf_counter() - began < 0.2


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


# ---------------------------------------------------------------------- in the real loop


class Scripted:
    """Stands in for the algorithm: every episode's policy follows its scene's solution."""

    def __init__(self, scenes):
        self.scripts = {scene.messages[-1]["content"]: scene.solution() for scene in scenes}

    def act(self, observations, *, seeds, env):
        responses = []
        for observation in observations:
            script = self.scripts[observation.metadata["messages"][-1]["content"]]
            text = TOKENIZER.decode(observation.input_ids)
            turn = text[text.rindex(observation.metadata["messages"][-1]["content"]) :]
            said = ids(script[turn.count("<tool_response>")]).tolist()
            responses.append(Response(said, [-1.0] * len(said), [1.0] * len(said), "eos"))
        return responses

    def fits(self, observation, env):
        return True

    def evaluate(self, trajectories):
        return [sequence_of(trajectory) for trajectory in trajectories]


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_the_loop_plays_episodes_of_several_turns_side_by_side(timeout_s):
    env = CalculatorEnv(TOKENIZER, timeout_s=timeout_s, tool_bonus=0.25, **SMALL)
    rollout = play_episodes(Scripted(env.scenes), env, starts=[3, 0, 3, 21], seeds=[1, 2, 3, 4])
    for trajectory, start in zip(rollout.trajectories, [3, 0, 3, 21], strict=True):
        assert trajectory.rewards == [0.25, 1.0] and trajectory.total_reward == 1.25
        counts = {"turns": 2, "tool_calls": 1, "tool_errors": 0, "correct": 1, "truncated": 0}
        assert counts.items() <= trajectory.metrics.items()
        sequence, positions = sequence_of(trajectory)
        said = [ids(text) for text in env.scenes[start].solution()]
        assert sequence[positions].equal(torch.cat(said))
