"""Rewards of several parts; and what users of AITraining's environments call on theirs."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from datamodules import Prompt, TextGenerationEnv
from datamodules.environments.multi_objective import MultiObjectiveRewardEnv
from datamodules.rewards.functions import RewardError
from rlmodules.models.embedded import tiny_tokenizer

PROMPTS = ["What is 2 + 2?", "Write a Python function.", "Explain machine learning."]


@pytest.fixture
def tokenizer():
    """Of GPT-2's kind: bytes, one special token, no padding of its own, left padding, no chat."""
    end = "<|endoftext|>"
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary | {end: 256}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, padding_side="left"
    )
    assert made.pad_token is None and made.chat_template is None
    return made


def end_with(env, text):
    tokens = [*env.tokenizer(text)["input_ids"], env.tokenizer.eos_token_id]
    return env.step(torch.tensor(tokens))


def is_correct(generated):
    return "4" in generated


def properly_formatted(generated):
    return generated.endswith(".")


def correctness_reward(prompt, generated, full_text):
    return 1.0 if is_correct(generated) else 0.0


def formatting_reward(prompt, generated, full_text):
    return 0.5 if properly_formatted(generated) else 0.0


def documented(tokenizer, **options):
    return MultiObjectiveRewardEnv(
        tokenizer=tokenizer,
        prompts=PROMPTS,
        reward_components={"correctness": correctness_reward, "formatting": formatting_reward},
        reward_weights={"correctness": 1.0, "formatting": 0.1},
        **options,
    )


# ------------------------------------------------------------------- several components


@pytest.mark.parametrize(
    ("text", "correctness", "formatting"),
    [("It is 4.", 1.0, 0.5), ("It is 4", 1.0, 0.0), ("It is 5.", 0.0, 0.5), ("", 0.0, 0.0)],
)
def test_the_documented_example_gives_component_rewards(tokenizer, text, correctness, formatting):
    env = documented(tokenizer)
    env.reset()
    # Step returns component rewards in metrics
    result = end_with(env, text)
    assert result.metrics["reward_correctness"] == correctness
    assert result.metrics["reward_formatting"] == formatting
    assert result.reward == pytest.approx(correctness + 0.1 * formatting)


def test_components_are_asked_once_at_the_end_about_the_right_texts(tokenizer):
    calls = []

    def spy(prompt, generated, full_text):
        calls.append((prompt, generated, full_text))
        return 1.0

    env = MultiObjectiveRewardEnv(tokenizer, ["Hi: "], {"spy": spy}, stop_sequences=["\n"])
    env.reset()
    for token in tokenizer("you")["input_ids"]:
        result = env.step(token)
        assert (result.reward, result.done) == (0.0, False) and "reward_spy" not in result.metrics
    result = env.step(tokenizer("\n")["input_ids"][0])
    assert (result.reward, result.done) == (1.0, True)
    assert calls == [("Hi: ", "you", "Hi: you")]


def test_a_component_with_metadata_is_given_the_rows_other_columns(tokenizer):
    def right(prompt, generated, full_text, metadata):
        return float(generated == metadata["answer"])

    env = MultiObjectiveRewardEnv(tokenizer, [Prompt("2+2=", {"answer": "4"})], {"right": right})
    for text, reward in (("4", 1.0), ("5", 0.0)):
        env.reset()
        assert end_with(env, text).reward == reward


def test_compute_multi_objective_reward_is_the_weighted_sum(tokenizer):
    env = MultiObjectiveRewardEnv(
        tokenizer=tokenizer,
        prompts=["What is 2 + 2?"],
        reward_components={
            "correctness": correctness_reward,
            "length": lambda p, g, f: min(len(g.split()) / 10, 1.0),
        },
        reward_weights={"correctness": 1.0, "length": 0.1},
    )
    total, components = env.compute_multi_objective_reward(
        "What is 2 + 2?", "The answer is 4", "What is 2 + 2? The answer is 4"
    )
    assert components == {"correctness": 1.0, "length": 0.4}
    assert total == 1.0 + 0.1 * components["length"]


def test_weights_are_one_unless_given_and_name_the_components(tokenizer):
    parts = {"a": lambda p, g, f: 1.0, "b": lambda p, g, f: 2.0}
    env = MultiObjectiveRewardEnv(tokenizer, ["x"], parts)
    assert env.compute_multi_objective_reward("x", "", "x")[0] == 3.0
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}):
        with pytest.raises(ValueError, match=r"reward_weights.*differ in \['[bc]'\]"):
            MultiObjectiveRewardEnv(tokenizer, ["x"], parts, weights)
    with pytest.raises(ValueError, match="reward_components is empty"):
        MultiObjectiveRewardEnv(tokenizer, ["x"], {})


@pytest.mark.parametrize("value", [float("nan"), [1.0], "1.0"])
def test_a_component_that_is_no_number_is_named(tokenizer, value):
    env = MultiObjectiveRewardEnv(tokenizer, ["Hi"], {"odd": lambda p, g, f: value})
    env.reset()
    with pytest.raises(ValueError, match=r"'odd' returned .*\n.*'Hi'\n.*'you'"):
        end_with(env, "you")


def test_a_component_that_does_not_apply_is_left_out_of_the_sum(tokenizer):
    parts = {"four": lambda p, g, f: 1.0 if "4" in g else None, "one": lambda p, g, f: None}
    env = MultiObjectiveRewardEnv(tokenizer, ["Hi"], parts, {"four": 2.0, "one": -1.0})
    env.reset()
    result = end_with(env, "4")
    assert (result.reward, result.info.get("unscored")) == (2.0, None)
    assert {k: v for k, v in result.metrics.items() if "reward" in k} == {"reward_four": 1.0}
    env.reset()
    result = end_with(env, "5")
    assert (result.reward, result.info["unscored"]) == (0.0, True)


def test_what_a_component_raises_reaches_the_caller(tokenizer):
    def broken(prompt, generated, full_text):
        raise KeyError("no such thing")

    env = MultiObjectiveRewardEnv(tokenizer, ["Hi"], {"broken": broken})
    env.reset()
    with pytest.raises(KeyError, match="no such thing"):
        end_with(env, "you")


def test_many_episodes_are_scored_together_in_order(tokenizer):
    env = documented(tokenizer)
    episodes = [env.fork() for _ in range(12)]
    for number, episode in enumerate(episodes):
        episode.reset(number % 3)
        episode.respond(torch.tensor(tokenizer(f"It is {number}")["input_ids"]))
    assert [reward for reward, _ in env.score(episodes)] == [
        float("4" in str(number)) for number in range(12)
    ]


# -------------------------------------------- what users of AITraining's environments do


def test_an_environment_shows_what_it_was_made_of(tokenizer):
    env = TextGenerationEnv(tokenizer=tokenizer, prompts=PROMPTS, max_length=128)
    assert env.tokenizer == tokenizer
    assert env.prompts == PROMPTS
    assert env.max_length == 128
    assert env.current_prompt_idx == 0
    assert (env.current_prompt, env.current_text, env.steps) == (None, "", 0)
    made = documented(tokenizer)
    assert len(made.reward_components) == 2 and made.reward_weights["formatting"] == 0.1


def test_text_and_steps_follow_the_episode(tokenizer):
    env = TextGenerationEnv(tokenizer=tokenizer, prompts=PROMPTS)
    observation = env.reset()
    assert env.current_text == env.current_prompt == observation.prompt == PROMPTS[0]
    assert (env.steps, env.current_prompt_idx) == (0, 1)
    first, second = tokenizer("AB")["input_ids"]
    result = env.step(torch.tensor([first]))
    assert isinstance(result.reward, float) and isinstance(result.done, bool)
    assert (env.current_text, env.steps) == (PROMPTS[0] + "A", 1)
    env.step(torch.tensor([second]))
    assert (env.current_text, env.steps) == (PROMPTS[0] + "AB", 2)
    assert env.render() == env.current_text
    env.reset()
    assert (env.current_text, env.steps) == (PROMPTS[1], 0)
    end_with(env, "whole")
    assert (env.current_text, env.steps) == (PROMPTS[1] + "whole", 6)
    env.reset()
    env.reset()
    assert (env.current_prompt, env.current_prompt_idx) == (PROMPTS[0], 1)


@pytest.mark.parametrize("pad", [False, True])
def test_a_tokenizer_that_pads_left_with_the_end_token_changes_nothing(tokenizer, pad):
    if pad:
        tokenizer.pad_token = tokenizer.eos_token
    env = TextGenerationEnv(tokenizer=tokenizer, prompts=["Hi", "A longer one"])
    observation = env.reset()
    assert observation.input_ids.tolist() == tokenizer("Hi")["input_ids"]
    assert observation.attention_mask.tolist() == [1, 1]
    result = end_with(env, "one two")
    assert result.done and result.reward == pytest.approx(0.02)
    assert env.current_text == "Hione two"


def test_an_episode_ends_at_max_length_and_says_that_it_was_cut(tokenizer):
    env = TextGenerationEnv(tokenizer=tokenizer, prompts=["Test"], max_length=6)
    env.reset()
    results = [env.step(torch.tensor([50])) for _ in range(2)]
    assert [result.done for result in results] == [False, True] and env.steps == 2
    assert results[-1].info["truncated"] is True
    env.reset()
    with pytest.raises(ValueError, match=r"7 tokens.*max_length is 6"):
        env.step(torch.tensor([50, 50, 50]))


def test_a_stop_string_counts_in_the_response_alone(tokenizer):
    env = documented(tokenizer, stop_sequences=["2?", "\n"])
    env.reset()
    assert not env.step(tokenizer("4")["input_ids"][0]).done
    result = env.step(tokenizer("\n")["input_ids"][0])
    assert result.done and result.metrics["reward_correctness"] == 1.0


def test_a_reward_of_one_response_is_called_for_each(tokenizer):
    calls = []

    def custom_reward(prompt, generated, full_text):
        calls.append((prompt, generated, full_text))
        return len(generated) * 0.5

    env = TextGenerationEnv(tokenizer=tokenizer, prompts=["Test"], reward_fn=custom_reward)
    env.reset()
    for _ in range(3):
        assert env.step(torch.tensor([50])).reward == 0.0
    result = env.step(torch.tensor([tokenizer.eos_token_id]))
    said = tokenizer.decode([50, 50, 50])
    assert result.done and result.reward == 1.5
    assert calls == [("Test", said, "Test" + said)]
    episodes = [env.fork() for _ in range(2)]
    for episode, text in zip(episodes, ("a", "bcd"), strict=True):
        episode.reset(0)
        episode.respond(torch.tensor(tokenizer(text)["input_ids"]))
    assert [reward for reward, _ in env.score(episodes)] == [0.5, 1.5]


def test_a_reward_of_one_response_that_fails_is_named(tokenizer):
    def picky_reward(prompt, generated, full_text):
        return float("nan") if generated == "bad" else 0.0

    env = TextGenerationEnv(tokenizer=tokenizer, prompts=["Test"], reward_fn=picky_reward)
    env.reset()
    with pytest.raises(RewardError, match=r"picky_reward returned nan(.|\n)*'bad'"):
        end_with(env, "bad")


@pytest.mark.parametrize("reward_fn", [7, "length"])
def test_a_reward_that_cannot_be_called_is_refused(tokenizer, reward_fn):
    with pytest.raises(TypeError, match="must be callable"):
        TextGenerationEnv(tokenizer=tokenizer, prompts=["Test"], reward_fn=reward_fn)


def test_the_same_tokens_give_the_same_episode(tokenizer):
    def play():
        env = documented(tokenizer)
        observation = env.reset(1)
        result = end_with(env, "It is 4.")
        return observation.input_ids.tolist(), result.reward, result.metrics, env.render()

    assert play() == play()


def decoded_by_a_whole_response(length: int) -> int:
    """Tokens that are decoded from ``step`` to the reward."""
    tokenizer = tiny_tokenizer()

    class Counting(type(tokenizer)):
        decoded = 0

        def decode(self, token_ids, *args, **kwargs):
            type(self).decoded += len(token_ids)
            return super().decode(token_ids, *args, **kwargs)

    tokenizer.__class__ = Counting
    env = documented(tokenizer, max_length=100_000, stop_sequences=["\n"])
    env.reset()
    end_with(env, "x" * length)
    return Counting.decoded


def test_a_whole_response_costs_linear_work():
    assert decoded_by_a_whole_response(1000) <= 4 * 1001
    assert decoded_by_a_whole_response(4000) <= 4 * 4001
