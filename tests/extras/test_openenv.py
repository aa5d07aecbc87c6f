"""``env=openenv`` with the real client, against real servers on loopback (``make test-extras``)."""

import time

import pytest

pytest.importorskip("openenv.core")

from openenv_helpers import (
    Cut,
    Forgetful,
    Guessing,
    Number,
    Over,
    Said,
    Two,
    Unrewarded,
    serving,
)
from tool_helpers import TOKENIZER, ids
from websockets.exceptions import ConnectionClosed

from datamodules.environments.openenv import OpenEnvEnv


def made(url, **options) -> OpenEnvEnv:
    sizes = {"num_problems": 4, "num_held_out": 2, "max_length": 40_000}
    return OpenEnvEnv(TOKENIZER, url, **sizes | options)


@pytest.fixture(scope="module")
def url():
    with serving() as address:
        yield address


def played(env, index, *said):
    """(reward, metrics, what the server said after each response) of one episode."""
    episode, told = env.fork(), []
    context, total = episode.reset(index).input_ids, 0.0
    for text in said:
        result = episode.respond(ids(text))
        total += result.reward
        if result.done:
            break
        new = result.next_observation.input_ids
        assert new[: len(context)].equal(context), "the context was written anew"
        told.append(TOKENIZER.decode(new[len(context) :]))
        context = new
    reward, metrics = env.score([episode])[0]
    return (None if reward is None else total + reward), result.metrics | metrics, told


def number_in(env, index):
    return env.fork().reset(index).prompt.split("it is ")[1][0]


def closed(count=0):
    """Whether no more than ``count`` sessions are left, soon."""
    for _ in range(100):
        if Guessing.live <= count:
            return True
        time.sleep(0.05)
    return False


def test_an_episode_is_a_session_whose_steps_are_rewarded(url):
    env = made(url, instruction="You guess.")
    first = env.fork().reset(0)
    assert "You guess." in first.prompt and "Guess my number" in first.prompt
    right = number_in(env, 0)
    reward, metrics, told = played(env, 0, "x", right, "never said")
    assert reward == pytest.approx(1.1) and metrics["turns"] == 2 and len(told) == 1
    assert "No." in told[0] and metrics["logged_invalid_actions"] == 0
    reward, metrics, told = played(env, 0, "x", "y", "z", "never said")
    assert reward == pytest.approx(0.3) and metrics["turns"] == 3
    reward, metrics, told = played(made(url, max_turns=2), 0, "x", "y", "z")
    assert reward == pytest.approx(0.2) and metrics["truncated"] == 1
    assert closed()


def test_problems_are_seeds_and_those_held_out_are_others(url):
    env, other = made(url, num_problems=30, num_held_out=30), made(url, num_problems=30, seed=1)
    assert len(env) == 60 and list(env.held_out) == list(range(30, 60))
    numbers = [number_in(env, i) for i in range(30)]
    assert numbers == [number_in(env, i) for i in range(30)]
    assert numbers != [number_in(env, i) for i in range(30, 60)]
    assert numbers != [number_in(other, i) for i in range(30)]
    assert "it is 1000" in made(url, reset={"base": 10_000_000}).reset(0).prompt
    assert closed(1)


def test_no_reward_at_all_does_not_apply():
    with serving(Unrewarded) as address:
        assert played(made(address), 0, "x", "y", "z")[0] is None


@pytest.mark.parametrize(
    "hostile",
    ["", "\x00\x01", "\ud7ff\u202e", '{"message": 1}', "<tool_call>{", "9" * 2000, "</s>"],
)
def test_a_hostile_text_is_an_action_like_another(url, hostile):
    reward, metrics, _ = played(made(url), 0, hostile, hostile, hostile)
    assert reward == pytest.approx(0.3) and metrics["logged_invalid_actions"] == 0


def test_a_response_that_is_no_action_is_told_so_and_no_step_is_made():
    with serving(action=Number) as address:
        env = made(address)
        right = number_in(env, 0)
        wrong = ["x", "1.5", "[1]", "true", "NaN", "", "[" * 3000, "9" * 5000, right]
        reward, metrics, told = played(env, 0, *wrong)
        assert reward == 1.0 and metrics["turns"] == len(wrong)
        assert metrics["logged_invalid_actions"] == len(wrong) - 1
        assert "Error: guess must be written as JSON" in told[0]
        assert "Error: 1.5 is not of type 'integer'" in told[1]


REFUSED = [
    ({"action": Cut}, {}, r"env.action is not given: the action of .* has \['x', 'y'\]"),
    ({"action": Cut}, {"action": "x"}, r"an action needs \['y'\] besides env.action=x"),
    ({"observation": Two}, {}, r"env.observation is not given.*\['image', 'text'\]"),
    ({}, {"action": "massage"}, r"env.action=massage: the action of .* has \['message'\]"),
    ({}, {"observation": "txt"}, r"env.observation=txt.*\['text', 'tries'\]"),
    ({}, {"reset": {"seed": 1}}, "env.reset.seed"),
    ({}, {"num_problems": 0}, "env.num_problems=0"),
    ({}, {"num_held_out": -1}, "env.num_held_out=-1"),
    ({}, {"max_turns": 0}, "env.max_turns=0"),
    ({}, {"timeout_s": -1}, "env.timeout_s=-1"),
    ({"kind": Forgetful}, {}, "does not begin alike twice"),
    ({"kind": Over}, {}, "gave an episode that is done"),
]


@pytest.mark.parametrize(("server", "options", "said"), REFUSED)
def test_what_cannot_be_played_is_refused_before_it_begins(server, options, said):
    with serving(**server) as address, pytest.raises(ValueError, match=said):
        made(address, **options)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:80", "env.url='127.0.0.1:80' must begin with one of http://"),
        (
            "http://127.0.0.1:9",
            "env.url=http://127.0.0.1:9: http://127.0.0.1:9/schema gives no sch",
        ),
        ("ws://127.0.0.1:9/", "http://127.0.0.1:9/schema gives no schemas"),
    ],
)
def test_where_no_server_is_the_error_says_so(address, said):
    with pytest.raises(ValueError, match=said):
        made(address)


def test_a_full_server_is_named_with_its_remedy():
    with serving(sessions=2) as address:
        env = made(address)
        first, second, third = env.fork(), env.fork(), env.fork()
        first.reset(0), second.reset(0)
        with pytest.raises(ValueError, match=r"no session left .*larger max_concurrent_envs"):
            third.reset(0)
        first.scene.close(), second.scene.close()
        third.reset(0)  # closed sessions make room


def test_an_environment_that_raises_or_hangs_fails_its_episode_and_closes_it(url):
    env = made(url, timeout_s=1.0)
    for said, error in (("crash", RuntimeError), ("sleep", TimeoutError)):
        episode, began = env.fork(), time.monotonic()
        episode.reset(0)
        with pytest.raises(error):
            episode.respond(ids(said))
        assert time.monotonic() - began < 4
    assert closed(1)


def test_a_server_that_goes_away_fails_the_episode():
    with serving() as address:
        episode = made(address).fork()
        episode.reset(0)
    began = time.monotonic()
    with pytest.raises((OSError, RuntimeError, ConnectionClosed)):
        episode.respond(ids("x"))
    with pytest.raises(ConnectionError):
        episode.reset(0)
    assert time.monotonic() - began < 20


def test_an_episode_that_is_dropped_gives_its_session_back(url):
    assert closed()
    env = made(url)
    for index in range(4):
        env.fork().reset(index)
    assert closed()
    assert Said(message="x").message == "x"
