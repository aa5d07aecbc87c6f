"""The text environment: when an episode ends, what is rewarded, and what it costs."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from datamodules import (
    Environment,
    Observation,
    Prompt,
    StepResult,
    TextGenerationEnv,
    Trajectory,
)
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
MESSAGES = [{"role": "user", "content": "What is 2+2?"}]


class Judge:
    """A reward function that remembers what it was asked; a point a character."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, responses, metadata=None):
        self.calls.append((list(prompts), list(responses), list(metadata)))
        return [float(len(response)) for response in responses]


def encode(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def env_of(*prompts, reward_fn: Callable | None = None, **options) -> TextGenerationEnv:
    prompts = prompts or ("Once",)
    return TextGenerationEnv(
        tokenizer=TOKENIZER, prompts=prompts, reward_fn=reward_fn or Judge(), **options
    )


def step_by_token(env: TextGenerationEnv, tokens: list[int]) -> list[StepResult]:
    """Token after token until the episode is over."""
    results = []
    for token in tokens:
        results.append(env.step(token))
        if results[-1].done:
            break
    return results


# ------------------------------------------------------------- the seed's snippets


def test_the_documented_dataclasses_have_the_documented_fields():
    names = {cls: [f.name for f in dataclasses.fields(cls)] for cls in (Observation, StepResult)}
    assert names[Observation] == ["input_ids", "attention_mask", "prompt", "metadata"]
    assert names[StepResult] == ["reward", "done", "next_observation", "info", "metrics"]
    documented, ours = dataclasses.fields(Trajectory)[:7], dataclasses.fields(Trajectory)[7:]
    assert [f.name for f in documented] == [
        "observations",
        "actions",
        "rewards",
        "logprobs",
        "done",
        "total_reward",
        "metrics",
    ]
    assert [f.name for f in ours] == ["failed", "finish_reason", "kept_mass", "unscored"]
    whole = Trajectory([], [], [], [], True, 1.5, {"a": 1.0})  # ours need not be given
    assert (whole.failed, whole.finish_reason, whole.kept_mass) == (False, "", [])


def test_the_documented_example_runs_as_written(capsys):
    def my_reward_function(prompts, responses, metadata=None):
        return [1.0 for _ in responses]

    tokenizer = TOKENIZER
    env = TextGenerationEnv(
        tokenizer=tokenizer,
        prompts=["Write a story about...", "Explain how..."],
        max_length=512,
        reward_fn=my_reward_function,  # Optional, default is length-based
        stop_sequences=["</s>", "\n\n"],
        temperature=1.0,
    )
    # Reset and step
    observation = env.reset()
    assert observation.prompt == "Write a story about..."
    assert observation.input_ids.tolist() == encode("Write a story about...")
    action_token = encode("!")[0]
    result = env.step(action_token)
    assert (result.reward, result.done) == (0.0, False)
    assert result.next_observation.input_ids.tolist() == encode("Write a story about...!")
    assert result.next_observation.attention_mask.tolist() == [1] * 23
    assert result.next_observation.prompt == "Write a story about..."
    # Render current state
    print(env.render())
    assert capsys.readouterr().out == "Write a story about...!\n"
    result = env.step(torch.tensor(encode("\n\n")))
    assert (result.reward, result.done, result.next_observation) == (1.0, True, None)


@pytest.mark.parametrize("action", [5, torch.tensor(5), torch.tensor([5]), torch.tensor([[5]])])
def test_one_token_may_come_as_a_number_or_as_a_tensor_of_any_shape(action):
    env = env_of()
    env.reset()
    result = env.step(action)
    assert not result.done
    assert result.next_observation.input_ids.tolist() == [*encode("Once"), 5]


# ------------------------------------------------------------------------ episodes

RESPONSES = {
    "plain": [*encode("plain text"), EOS],
    "stop": encode("so it goes.END"),
    "stop and EOS": [*encode("so it goes.END")[:-1], EOS],
    "character of several bytes": [*encode("日本語é"), EOS],
    "stop of several bytes": encode("語é語"),
    "nothing said": [EOS],
    "only a stop": encode("END"),
}


@pytest.mark.parametrize("tokens", RESPONSES.values(), ids=RESPONSES)
def test_token_by_token_and_whole_give_the_same_episode(tokens):
    results, judges = [], [Judge(), Judge()]
    for judge, whole in zip(judges, (True, False), strict=True):
        env = env_of("A prompt: ", reward_fn=judge, stop_sequences=["END", "é語"])
        env.reset()
        if whole:
            result = env.step(torch.tensor(tokens))
        else:
            *before, result = step_by_token(env, tokens)
            assert len(before) == len(tokens) - 1
            assert all(r.reward == 0 and not r.done for r in before)
        results.append((result, env.render(), env.response))
    assert judges[0].calls == judges[1].calls and len(judges[0].calls) == 1
    assert results[0] == results[1]
    assert results[0][0].done and results[0][0].info["truncated"] is False


def test_eos_ends_the_episode_and_is_no_part_of_the_rewarded_text():
    judge = Judge()
    env = env_of(reward_fn=judge)
    env.reset()
    results = step_by_token(env, [*encode("hi"), EOS, *encode("never said")])
    assert [result.done for result in results] == [False, False, True]
    assert results[-1].reward == 2.0
    assert judge.calls == [(["Once"], ["hi"], [{}])]


def test_nothing_after_eos_counts_in_a_whole_response():
    judge = Judge()
    env = env_of(reward_fn=judge)
    env.reset()
    result = env.step(torch.tensor([*encode("hi"), EOS, *encode(" and more")]))
    assert judge.calls == [(["Once"], ["hi"], [{}])]
    assert result.reward == 2.0 and result.info["truncated"] is False


def test_a_stop_sequence_inside_the_prompt_does_not_end_the_episode():
    judge = Judge()
    env = env_of("Q: END\n\nA: END", reward_fn=judge, stop_sequences=["END", "\n\n"])
    env.reset()
    assert [r.done for r in step_by_token(env, encode("yes END"))] == [False] * 6 + [True]
    assert judge.calls[0][1] == ["yes "]


def test_a_stop_sequence_across_the_prompts_end_does_not_count():
    env = env_of("line\n", stop_sequences=["\n\n"])
    env.reset()
    assert [r.done for r in step_by_token(env, encode("\nx\n\n"))] == [False, False, False, True]


def test_a_stop_sequence_may_span_tokens_and_share_characters_with_them():
    env = env_of(stop_sequences=["é語", "STOP"])
    env.reset()
    tokens = encode("aé語b")  # é takes two tokens, 語 three
    assert [r.done for r in step_by_token(env, tokens)] == [False] * 5 + [True]
    assert env.response == "a"


def test_the_rewarded_text_ends_before_the_earliest_stop_sequence():
    judge = Judge()
    env = env_of(reward_fn=judge, stop_sequences=["late", "early"])
    env.reset()
    result = env.step(torch.tensor(encode("some early and late, with much more behind")))
    assert result.info["truncated"] is False
    assert judge.calls[0][1] == ["some "]
    assert env.render() == "Oncesome "


def test_a_response_without_an_end_is_called_truncated():
    env = env_of()
    env.reset()
    result = env.step(torch.tensor(encode("and then")))
    assert result.done and result.info["truncated"] is True


def test_a_token_episode_ends_at_max_length_with_every_token_kept():
    judge = Judge()
    env = env_of("1234", reward_fn=judge, max_length=7)
    env.reset()
    results = step_by_token(env, encode("abcdef"))
    assert [r.done for r in results] == [False, False, True]
    assert results[-1].info["truncated"] is True
    assert judge.calls[0][1] == ["abc"]


def test_an_end_exactly_at_max_length_is_an_end_and_not_a_cut():
    for tokens in ([*encode("ab"), EOS], encode("a##")):
        env = env_of("1234", max_length=7, stop_sequences=["##"])
        env.reset()
        results = step_by_token(env, tokens)
        assert [r.done for r in results] == [False, False, True]
        assert results[-1].info["truncated"] is False


def test_a_whole_response_that_does_not_fit_is_refused_rather_than_cut():
    judge = Judge()
    env = env_of("1234", reward_fn=judge, max_length=7)
    env.reset()
    with pytest.raises(ValueError, match=r"8 tokens.*max_length is 7"):
        env.step(torch.tensor(encode("abcd")))
    assert judge.calls == []
    env.reset()
    assert env.step(torch.tensor(encode("abc"))).reward == 3.0


def test_a_prompt_that_leaves_no_room_is_refused_by_its_name():
    env = env_of("ok", "1234567", max_length=7)
    env.reset()
    with pytest.raises(ValueError, match=r"prompt 1 .*7 tokens.*max_length=7.*'1234567'"):
        env.reset()
    env_of("123456", max_length=7).reset()


def test_a_step_before_reset_or_after_the_end_raises():
    env = env_of()
    with pytest.raises(RuntimeError, match="reset"):
        env.step(5)
    env.reset()
    env.step(EOS)
    for action in (5, torch.tensor([5, 6])):
        with pytest.raises(RuntimeError, match="reset"):
            env.step(action)
    with pytest.raises(RuntimeError, match="reset"):
        env.respond(torch.tensor([5, 6]))
    env.reset()
    assert not env.step(5).done


def test_reset_takes_the_prompts_in_turn_or_by_number_and_forgets_the_last_response():
    env = env_of("a", "b", "c")
    assert len(env) == 3
    assert [env.reset().prompt for _ in range(4)] == ["a", "b", "c", "a"]
    env.step(5)
    observation = env.reset(2)
    assert observation.prompt == "c"
    assert observation.input_ids.tolist() == encode("c")
    assert env.response == "" and env.render() == "c"
    assert env.reset().prompt == "b"


def test_the_default_reward_is_the_length_of_the_response():
    env = TextGenerationEnv(tokenizer=TOKENIZER, prompts=["Once"])
    rewards = []
    for text in ("", "one", "one two three"):
        env.reset()
        rewards.append(env.step(torch.tensor([*encode(text), EOS])).reward)
    assert rewards == pytest.approx([0.0, 0.01, 0.03])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"prompts": []}, "prompts"),
        ({"stop_sequences": ["x", ""]}, "stop_sequences"),
        ({"temperature": 0.0}, "temperature"),
        ({"prompts": [7]}, "prompt"),
        ({"prompts": [[{"role": "user"}]]}, "prompt"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options, names):
    with pytest.raises(ValueError, match=names):
        TextGenerationEnv(**{"tokenizer": TOKENIZER, "prompts": ["a"]} | options)


# --------------------------------------------------------------- rewards and forks


def test_the_reward_function_is_called_once_with_prompts_responses_and_metadata():
    judge = Judge()
    env = env_of(Prompt("Sum: ", {"answer": "4", "id": 7}), reward_fn=judge)
    observation = env.reset()
    assert observation.metadata == {"answer": "4", "id": 7}
    results = step_by_token(env, [*encode("2+2"), EOS])
    assert judge.calls == [(["Sum: "], ["2+2"], [{"answer": "4", "id": 7}])]
    assert [result.reward for result in results] == [0, 0, 0, 3.0]


def test_many_forks_are_scored_in_one_call_and_in_order():
    judge = Judge()
    env = env_of(*(Prompt(f"p{i}", {"id": i}) for i in range(4)), reward_fn=judge)
    episodes = [env.fork() for _ in range(5)]
    for episode, start, text in zip(
        episodes, (3, 0, 1, 3, 2), ("a", "", "ccc", "dd", "eeee"), strict=True
    ):
        episode.reset(start)
        assert episode.respond(torch.tensor([*encode(text), EOS])).reward == 0.0
    assert judge.calls == []
    scores = env.score(episodes)
    assert [reward for reward, metrics in scores] == [1.0, 0.0, 3.0, 2.0, 4.0]
    assert judge.calls == [
        (
            ["p3", "p0", "p1", "p3", "p2"],
            ["a", "", "ccc", "dd", "eeee"],
            [{"id": 3}, {"id": 0}, {"id": 1}, {"id": 3}, {"id": 2}],
        )
    ]


def test_forks_play_their_own_episodes():
    env = env_of("aa", "bb")
    env.reset(0)
    env.step(encode("x")[0])
    first, second = env.fork(), env.fork()
    assert first.reset(1).prompt == "bb"
    first.step(encode("y")[0])
    second.reset(0)
    second.step(torch.tensor([*encode("whole"), EOS]))
    assert (env.render(), first.render(), second.render()) == ("aax", "bby", "aawhole")
    assert not env.step(encode("z")[0]).done


def test_forks_of_a_running_episode_go_their_own_ways():
    env = env_of("aa")
    env.reset()
    env.step(encode("x")[0])
    left, right = env.fork(), env.fork()
    left.step(encode("l")[0])
    right.step(encode("r")[0])
    assert (env.response, left.response, right.response) == ("x", "xl", "xr")


def test_a_reward_function_may_change_the_metadata_it_is_given_without_harm():
    def careless(prompts, responses, metadata=None):
        metadata[0]["answer"] = None
        return [0.0]

    env = env_of(Prompt("p", {"answer": "4"}), reward_fn=careless)
    env.reset()
    env.step(EOS)
    assert env.reset(0).metadata == {"answer": "4"}


# --------------------------------------------------------------------- chat prompts


def bos_and_eos_tokenizer():
    """Puts BOS before and EOS after every plain text, as some tokenizers do."""
    tokenizer = tiny_tokenizer()
    special = [("<bos>", tokenizer.bos_token_id), ("<eos>", EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, bos_and_eos_tokenizer])
def test_a_conversation_goes_through_the_template_exactly_once(make):
    tokenizer, judge = make(), Judge()
    env = TextGenerationEnv(tokenizer=tokenizer, prompts=[MESSAGES], reward_fn=judge)
    observation = env.reset()
    text = "<bos>[user]What is 2+2?<eos>[assistant]"
    assert observation.prompt == text
    template = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert observation.input_ids.tolist() == template["input_ids"]
    assert observation.input_ids.tolist().count(tokenizer.bos_token_id) == 1
    assert observation.input_ids.tolist().count(EOS) == 1
    assert observation.input_ids[-1] != EOS
    assert observation.metadata == {"messages": MESSAGES}
    env.step(torch.tensor([*encode("4"), EOS]))
    assert judge.calls == [([text], ["4"], [{"messages": MESSAGES}])]
    assert env.render() == text + "4"


def test_a_plain_prompt_gets_one_bos_and_no_eos():
    env = TextGenerationEnv(tokenizer=bos_and_eos_tokenizer(), prompts=["Once"])
    observation = env.reset()
    assert observation.input_ids.tolist() == [TOKENIZER.bos_token_id, *encode("Once")]
    assert observation.attention_mask.tolist() == [1] * 5


# ------------------------------------------------------------------------------ cost


def counting_tokenizer():
    """Adds up the tokens that it is asked to decode and the characters that it encodes."""
    tokenizer = tiny_tokenizer()

    class Counting(type(tokenizer)):
        decoded = encoded = 0

        def decode(self, token_ids, *args, **kwargs):
            type(self).decoded += len(token_ids)
            return super().decode(token_ids, *args, **kwargs)

        def __call__(self, text, *args, **kwargs):
            type(self).encoded += len(text)
            return super().__call__(text, *args, **kwargs)

    tokenizer.__class__ = Counting
    return tokenizer


def cost(length: int, whole: bool) -> tuple[int, int]:
    """Tokens decoded and characters encoded by one episode."""
    tokenizer = counting_tokenizer()
    env = TextGenerationEnv(
        tokenizer=tokenizer, prompts=["Once"], max_length=10_000, stop_sequences=["END", "\n\n"]
    )
    env.reset()
    tokens = torch.tensor([*encode("x" * length), EOS])
    if whole:
        assert env.step(tokens).done
    else:
        assert len(step_by_token(env, tokens.tolist())) == length + 1
    return type(tokenizer).decoded, type(tokenizer).encoded


def test_a_whole_response_costs_no_more_than_linear_work():
    decoded, encoded = cost(2000, whole=True)
    assert decoded <= 3 * 2000 and encoded == len("Once")


def test_token_steps_look_only_at_the_tail_and_tokenize_nothing_again():
    decoded, encoded = cost(400, whole=False)
    assert decoded <= 10 * 400 and encoded == len("Once")
    assert cost(800, whole=False)[0] < 2.1 * decoded


# --------------------------------------------------------------------- the base class


class Guessing(Environment):
    """Two turns; the guess itself is the reward."""

    def __init__(self):
        self.guesses = []

    def __len__(self):
        return 1

    def reset(self, index=None):
        self.guesses = []
        return self.observation()

    def observation(self):
        ids = torch.tensor([3, *self.guesses])
        return Observation(ids, torch.ones_like(ids), "guess")

    def respond(self, tokens):
        self.guesses = [*self.guesses, *tokens.tolist()]
        done = len(self.guesses) >= 2
        return StepResult(0.5, done, None if done else self.observation())

    def score(self, episodes):
        return [(float(sum(e.guesses)), {"guesses": len(e.guesses)}) for e in episodes]


def test_a_step_of_several_turns_adds_the_score_only_at_the_end():
    env = Guessing()
    env.reset()
    first = env.step(4)
    assert (first.reward, first.done, first.metrics) == (0.5, False, {})
    last = env.step(torch.tensor([[5]]))
    assert (last.reward, last.done, last.metrics) == (9.5, True, {"guesses": 2})


def test_an_environment_without_a_score_gives_zero():
    env = Guessing()
    assert Environment.score(env, [env, env]) == [(0.0, {}), (0.0, {})]
