"""Whole episodes with a scripted policy and a scripted environment, well behaved or not."""

import math
import threading
import time
from dataclasses import dataclass, field

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision as Precision

from datamodules import Environment, Observation, StepResult
from datamodules.environments import TextGenerationEnv
from datamodules.experience import action_mask
from datamodules.rewards.functions import RewardError
from datamodules.rollouts import episodes
from datamodules.rollouts.episodes import EpisodeError, act_out, play, require_some, score
from datamodules.types import Evaluation, Response, action_rewards, sequence_of
from rlmodules.models.embedded import tiny_tokenizer

REPLY = [90, 91]


class Chain(Environment):
    """Starting state i takes ``turns[i]`` turns; each but the last is answered by ``REPLY``.

    Args:
        reset_with, respond_with, score_with: starting state -> a call made instead, given the
            episode.
    """

    def __init__(
        self, turns=(1, 1, 1), reset_with=None, respond_with=None, score_with=None, **options
    ):
        self.turns, self.batches, self.reset_with = turns, [], reset_with or {}
        self.respond_with, self.score_with = respond_with or {}, score_with or {}
        vars(self).update(options)

    def __len__(self):
        return len(self.turns)

    def reset(self, index=None):
        self.index, self.turn, self.context = index, 0, torch.tensor([10 + index, 11])
        if index in self.reset_with:
            return self.reset_with[index](self)
        return self.observation()

    def observation(self):
        ids = self.context
        return Observation(ids, torch.ones_like(ids), f"state {self.index}")

    def respond(self, tokens):
        self.turn += 1
        if self.index in self.respond_with:
            return self.respond_with[self.index](self)
        return self.answer(tokens)

    def answer(self, tokens, reward=0.25):
        done = self.turn == self.turns[self.index]
        self.context = torch.cat([self.context, tokens, torch.tensor(REPLY)])
        return StepResult(reward, done, None if done else self.observation())

    def score(self, episodes):
        self.batches.append([e.index for e in episodes])
        return [
            self.score_with[e.index](e)
            if e.index in self.score_with
            else (float(e.index), {"reward_state": float(e.index)})
            for e in episodes
        ]


@dataclass
class Script:
    """A policy that writes turn + 2 tokens, 20, 21, ..., and has ``room`` tokens of context."""

    room: int = 1000
    seen: list = field(default_factory=list)

    def act(self, observations, *, seeds, env):
        self.seen.append(list(zip([o.prompt for o in observations], seeds, strict=True)))
        count = len(self.seen) + 1
        tokens = [*range(20, 20 + count)]
        return [Response(list(tokens), [-0.5] * count, [1.0] * count, "eos") for _ in observations]

    def fits(self, observation, env):
        return len(observation.input_ids) <= self.room

    def evaluate(self, trajectories):
        pairs = [sequence_of(t) for t in trajectories]
        sequences, positions = [list(column) for column in zip(*pairs, strict=True)]
        mask = action_mask(positions)
        return Evaluation(sequences, positions, mask, mask.float(), None, mask.float() * 0)


def played(env, starts=None, policy=None):
    starts = range(len(env)) if starts is None else starts
    return play(policy or Script(), env, starts, [100 + s for s in starts])


def boom(episode):
    raise ConnectionError("the hotel is closed")


@pytest.fixture
def hang():
    """A call that hangs until the test is over."""
    release = threading.Event()
    yield lambda episode: release.wait()
    release.set()


# ----------------------------------------------------------------------- turns


def test_of_several_turns_only_the_policys_tokens_are_actions_token_by_token():
    rollout = played(Chain(turns=(1, 3)))
    one, three = rollout.evaluation.sequences
    assert one.tolist() == [10, 11, 20, 21]
    #                         prompt   turn 1  REPLY   turn 2      REPLY   turn 3
    assert three.tolist() == [11, 11, 20, 21, 90, 91, 20, 21, 22, 90, 91, 20, 21, 22, 23]
    assert [p.tolist() for p in rollout.evaluation.positions] == [
        [2, 3],
        [2, 3, 6, 7, 8, 11, 12, 13, 14],
    ]
    assert rollout.evaluation.mask.sum(1).tolist() == [2, 9]
    last = rollout.trajectories[1]
    assert [a.tolist() for a in last.actions] == [[20, 21], [20, 21, 22], [20, 21, 22, 23]]
    assert [len(logprobs) for logprobs in last.logprobs] == [2, 3, 4]
    assert len(last.kept_mass) == 9 and last.finish_reason == "eos"
    assert last.metrics == {"reward_state": 1.0}


def test_each_turns_reward_stands_on_its_last_token_and_the_score_on_the_last():
    rollout = played(Chain(turns=(1, 3)))
    last = rollout.trajectories[1]
    assert last.rewards == [0.25, 0.25, 1.25] and last.total_reward == 1.75
    assert last.metrics["reward_state"] == 1.0
    rewards = action_rewards(rollout.trajectories, rollout.evaluation.mask)
    assert rewards[1].tolist() == [0, 0.25, 0, 0, 0.25, 0, 0, 0, 1.25]
    assert rewards[0].tolist() == [0, 0.25, 0, 0, 0, 0, 0, 0, 0]


def test_each_turn_of_an_episode_has_a_seed_of_its_own_that_the_others_do_not_change():
    together, alone = Script(), Script()
    played(Chain(turns=(2, 1, 3)), policy=together)
    played(Chain(turns=(2, 1, 3)), starts=[2], policy=alone)
    assert [[name for name, _ in turn] for turn in together.seen] == [
        ["state 0", "state 1", "state 2"],
        ["state 0", "state 2"],
        ["state 2"],
    ]
    seeds = [dict(turn)["state 2"] for turn in together.seen]
    assert len(set(seeds)) == 3
    assert seeds == [dict(turn)["state 2"] for turn in alone.seen]


def test_a_context_without_room_for_another_turn_ends_as_truncated_and_is_scored():
    env = Chain(turns=(1, 3))
    rollout = played(env, policy=Script(room=8))  # 6 tokens before turn 2, 11 before turn 3
    cut, whole = rollout.trajectories[1], rollout.trajectories[0]
    assert len(cut.actions) == 2 and cut.done
    assert cut.metrics["truncated"] == 1.0 and cut.finish_reason == "length"
    assert "truncated" not in whole.metrics and whole.finish_reason == "eos"
    assert env.batches == [[0, 1]] and cut.total_reward == 0.25 + 0.25 + 1.0


def test_finished_episodes_are_scored_as_one_batch_or_each_alone_under_a_time_limit():
    env = Chain()
    played(env)
    assert env.batches == [[0, 1, 2]]
    env = Chain(timeout_s=5.0)
    rollout = played(env)
    assert sorted(env.batches) == [[0], [1], [2]]
    assert [t.total_reward for t in rollout.trajectories] == [0.25, 1.25, 2.25]


# ------------------------------------------------------------ environments that fail


every_failure = pytest.mark.parametrize(
    ("where", "text"),
    [
        ("respond raises", "ConnectionError: the hotel is closed"),
        ("score raises", "ConnectionError: the hotel is closed"),
        ("score is nan", "nan is no finite number"),
        ("score is inf", "inf is no finite number"),
        ("respond hangs", r"0.2 seconds (env.timeout_s)"),
        ("score hangs", r"0.2 seconds (env.timeout_s)"),
        ("a turn's reward is nan", "nan"),
        ("respond returns None", "None"),
        ("not done, and nothing to see", "next_observation"),
    ],
)


def failing(where, hang, **options):
    """Three episodes, of which number 1 fails."""
    calls = {
        "respond raises": {"respond_with": boom},
        "score raises": {"score_with": boom},
        "score is nan": {"score_with": lambda e: (math.nan, {})},
        "score is inf": {"score_with": lambda e: (math.inf, {})},
        "respond hangs": {"respond_with": hang},
        "score hangs": {"score_with": hang},
        "a turn's reward is nan": {"respond_with": lambda e: StepResult(math.nan, True, None)},
        "respond returns None": {"respond_with": lambda e: None},
        "not done, and nothing to see": {"respond_with": lambda e: StepResult(0.0, False, None)},
    }[where]
    calls = {name: {1: call} for name, call in calls.items()}
    if "hangs" in where:
        options["timeout_s"] = 0.2
    return Chain(**calls, **options)


@every_failure
def test_under_skip_it_costs_one_episode_and_a_warning_that_shows_it(where, text, hang):
    env = failing(where, hang, on_error="skip")
    began = time.monotonic()
    with pytest.warns(UserWarning) as caught:
        rollout = played(env)
    assert time.monotonic() - began < 5
    message = str(caught[0].message)
    for part in (text, "Chain", "state 1", "[20, 21]", "env.on_error=skip"):
        assert part in message
    assert len(caught) == 1
    assert [t.failed for t in rollout.trajectories] == [False, True, False]
    assert [t.total_reward for t in rollout.trajectories][::2] == [0.25, 2.25]
    assert rollout.evaluation.mask.sum(1).tolist() == [2, 0, 2]
    assert [len(p) for p in rollout.evaluation.positions] == [2, 0, 2]
    assert rollout.trajectories[1].total_reward == 0.0


@every_failure
def test_under_raise_it_stops_the_run_with_an_error_that_shows_it(where, text, hang):
    with pytest.raises(EpisodeError) as error:
        played(failing(where, hang, on_error="raise"))
    for part in (text, "Chain", "state 1", "[20, 21]", "env.on_error=skip"):
        assert part in str(error.value)


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_under_skip_an_episode_that_cannot_begin_costs_itself_alone(how, hang):
    call, limit = (hang, 0.2) if how == "hangs" else (boom, None)
    env, policy = Chain(reset_with={1: call}, on_error="skip", timeout_s=limit), Script()
    with pytest.warns(UserWarning, match=r"(?s)(hotel is closed|0\.2 seconds).*starting state 1"):
        rollout = played(env, policy=policy)
    assert [prompt for prompt, _ in policy.seen[0]] == ["state 0", "state 2"]
    assert [t.failed for t in rollout.trajectories] == [False, True, False]
    assert rollout.evaluation.mask.sum(1).tolist() == [2, 0, 2]
    assert [t.total_reward for t in rollout.trajectories] == [0.25, 0.0, 2.25]


def test_under_raise_an_episode_that_cannot_begin_stops_the_run():
    with pytest.raises(EpisodeError, match=r"(?s)hotel is closed.*test_episodes.*state 1"):
        played(Chain(reset_with={1: boom}))
    with pytest.raises(EpisodeError, match="reset returned None, which is no Observation"):
        played(Chain(reset_with={1: lambda episode: None}))


def test_what_an_environment_finds_wrong_with_a_prompt_is_said_as_it_says_it():
    def too_long(episode):
        raise ValueError("env.max_length=8: raise it")

    with pytest.raises(ValueError, match=r"^env\.max_length=8: raise it$"):
        played(Chain(reset_with={1: too_long}))


def test_only_the_first_failures_are_shown_and_the_others_counted():
    env = Chain(turns=(1,) * 20, respond_with=dict.fromkeys(range(19), boom), on_error="skip")
    with pytest.warns(UserWarning) as caught:
        played(env)
    assert len(caught) == 9 and "counted only" in str(caught[-1].message)
    assert env.num_failed == 19


def test_a_score_without_metrics_is_an_error_that_says_what_is_expected():
    class Plain(Chain):
        def score(self, episodes):
            return [1.0] * len(episodes)

    with pytest.raises(
        EpisodeError, match=r"score gave 1\.0, expected \(reward, dict of metrics\)"
    ):
        played(Plain())


def test_an_episode_that_failed_in_its_second_turn_plays_no_third_and_is_not_scored():
    def second_turn(episode):
        if episode.turn == 2:
            raise ConnectionError("gone")
        return episode.answer(torch.tensor([20, 21]))

    env = Chain(turns=(3, 3), respond_with={1: second_turn}, on_error="skip")
    policy = Script()
    with pytest.warns(UserWarning, match="gone"):
        rollout = played(env, policy=policy)
    assert [len(turn) for turn in policy.seen] == [2, 2, 1]
    assert env.batches == [[0]]
    assert rollout.evaluation.mask.sum(1).tolist() == [9, 0]


def test_an_error_of_the_whole_batch_costs_only_the_episodes_that_raise_alone():
    env = Chain(score_with={1: boom}, on_error="skip")
    with pytest.warns(UserWarning, match="the hotel is closed"):
        played(env)
    assert env.batches == [[0, 1, 2], [0], [1], [2]]


def test_under_raise_an_error_that_does_not_come_back_still_stops_the_run():
    class Flaky(Chain):
        def score(self, episodes):
            if len(episodes) > 1:
                raise ConnectionError("the scorer was away")
            return super().score(episodes)

    with pytest.raises((EpisodeError, ConnectionError), match="the scorer was away"):
        played(Flaky())


@pytest.mark.parametrize("where", ["respond", "score"])
def test_if_all_episodes_fail_there_is_nothing_to_learn_from(where):
    calls = {f"{where}_with": dict.fromkeys(range(3), boom)}
    env = Chain(**calls, on_error="skip")
    with pytest.warns(UserWarning, match="the hotel is closed"):
        rollout = played(env)
    with pytest.raises(EpisodeError, match="all 3 episodes of Chain failed"):
        require_some(env, rollout.trajectories)


def test_while_another_process_has_intact_episodes_the_run_goes_on():
    env = Chain(reset_with=dict.fromkeys(range(3), boom), on_error="skip")
    with pytest.warns(UserWarning, match="the hotel is closed"):
        rollout = played(env)
    require_some(
        env, rollout.trajectories, lambda counts: counts + torch.tensor([1.0, 3.0, 1.0, 0])
    )
    with pytest.raises(EpisodeError, match="all 6 episodes"):
        require_some(env, rollout.trajectories, lambda counts: 2 * counts)


@pytest.mark.parametrize("timeout_s", [None, 5.0])
@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_scores_is_an_error_that_says_so(timeout_s, count):
    class Careless(Chain):
        def score(self, episodes):
            return [(1.0, {})] * (count * len(episodes))

    with pytest.raises(EpisodeError, match=rf"Careless\.score returned {count}\d* results? for"):
        played(Careless(turns=(1,), timeout_s=timeout_s))


def test_a_reward_functions_error_costs_the_episode_it_complains_of():
    def picky(prompts, responses, metadata=None):
        return [math.nan if prompt == "two" else 1.0 for prompt in prompts]

    options = {"tokenizer": tiny_tokenizer(), "prompts": ["one", "two"], "reward_fn": picky}
    with pytest.raises(RewardError, match="two"):
        played(TextGenerationEnv(**options))
    with pytest.warns(UserWarning, match="two"):
        rollout = played(TextGenerationEnv(**options, on_error="skip"))
    assert [t.failed for t in rollout.trajectories] == [False, True]
    assert rollout.trajectories[0].total_reward == 1.0


def test_episodes_are_scored_side_by_side_where_one_may_hang():
    """Two at a time at least, so that those that hang cost their time once."""
    other = threading.Barrier(2)
    waits = dict.fromkeys(range(4), lambda e: (float(other.wait(20)), {}))
    env = Chain((1,) * 5, score_with=waits, timeout_s=60)
    policy = Script()
    episodes, trajectories = act_out(policy, env, range(5), range(5))
    score(env, episodes, trajectories)
    assert not other.broken and not any(t.failed for t in trajectories)


def test_the_precision_of_an_evaluation_ends_with_it_however_long_rewards_take(monkeypatch):
    began, ended = threading.Event(), threading.Event()

    def device():
        if threading.current_thread() is not threading.main_thread():
            began.wait(10)  # a thread that looks at torch's type now sees the evaluation's
        return torch.device("cpu")

    class Half(Script):
        def evaluate(self, trajectories):
            with Precision("bf16-true").forward_context():
                began.set()
                time.sleep(0.05)
                found = super().evaluate(trajectories)
            ended.set()
            return found

    def slowly(episode):
        ended.wait(10)
        return 1.0, {}

    monkeypatch.setattr(episodes, "own_device", device)
    play(Half(), Chain((1,), score_with={0: slowly}), [0], [1])
    assert torch.get_default_dtype() == torch.float32


def test_what_a_reward_does_to_torchs_default_type_is_undone():
    def double(episode):
        torch.set_default_dtype(torch.float64)
        return 1.0, {}

    played(Chain((1,), score_with={0: double}))
    assert torch.get_default_dtype() == torch.float32
