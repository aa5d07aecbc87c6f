"""Environments with tools, played by scripted policies: perfect, wrong and adversarial ones."""

import pytest
import torch
from tool_helpers import SMALL, TOKENIZER, Counter, answer_to, ids

from datamodules.environments.calculator import CalculatorEnv
from datamodules.environments.toolbox import MAX_ANSWER, as_call
from datamodules.environments.tools import ToolEnv
from datamodules.rollouts.episodes import play as play_episodes
from datamodules.types import Response, sequence_of


def counter(**options) -> ToolEnv:
    return ToolEnv(TOKENIZER, [Counter()], **{"max_length": 8000} | options)


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
