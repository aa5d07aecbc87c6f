"""The environment that compares responses to one prompt."""

import pytest
import torch
from judge_helpers import opinionated, rewards

from datamodules.environments.preference import PreferenceComparisonEnv
from datamodules.rewards.functions import RewardError
from datamodules.text.prompts import Prompt
from rlmodules import PairwiseRewardModel, RewardModel
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models.serving import preference_env

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
MESSAGES = [{"role": "user", "content": "What is 2+2?"}]


def tokens(text: str, end: bool = True) -> torch.Tensor:
    return torch.tensor(TOKENIZER(text)["input_ids"] + [EOS] * end)


def longer(prompt, response1, response2):
    """P(first is better)"""
    return 0.9 if len(response1) > len(response2) else 0.2


def env_of(*prompts, model=longer, **options) -> PreferenceComparisonEnv:
    return PreferenceComparisonEnv(TOKENIZER, prompts or ("Test",), model, **options)


# ------------------------------------------------- the seed's snippet, a peer's expectations


def test_the_documented_example_runs_as_written():
    tokenizer, prompts = TOKENIZER, ["Write a story about...", "Explain how..."]
    response1_tokens, response2_tokens = tokens("A fox."), tokens("A fox and a hen.")
    preference_model = opinionated(RewardModel)
    asked = []

    def feedback_fn(*arguments):
        asked.append(arguments)
        return -1.0

    env = PreferenceComparisonEnv(
        tokenizer=tokenizer,
        prompts=prompts,
        preference_model=preference_model,  # Optional
        human_feedback_fn=feedback_fn,  # Optional callback
        max_length=512,
    )
    # Generates pairs of responses and computes preference
    observation = env.reset()
    result1 = env.step(response1_tokens)  # First response
    result2 = env.step(response2_tokens)  # Second response, computes preference
    assert observation.prompt == "Write a story about..."
    assert (result1.reward, result1.done) == (0.0, False)
    assert torch.equal(result1.next_observation.input_ids, observation.input_ids)
    assert (result2.reward, result2.done, result2.next_observation) == (-1.0, True, None)
    assert asked == [("Write a story about...", "A fox.", "A fox and a hen.")]


def test_prompts_can_be_looked_at_before_there_is_a_judge():
    env = PreferenceComparisonEnv(tokenizer=TOKENIZER, prompts=["Test"], max_length=128)
    assert env.responses == []
    observation = env.reset()
    assert env.responses == [] and observation.metadata["comparison_round"] == 0


def test_a_peers_episode():
    def mock_feedback(prompt, resp1, resp2):
        return 1.0 if len(resp1) > len(resp2) else -1.0

    env = PreferenceComparisonEnv(
        tokenizer=TOKENIZER, prompts=["Test"], human_feedback_fn=mock_feedback
    )
    env.reset()
    result1 = env.step(torch.tensor([50, 51, 52]))
    assert not result1.done and len(env.responses) == 1
    assert result1.next_observation.metadata["comparison_round"] == 1
    result2 = env.step(torch.tensor([50]))
    assert result2.done and len(env.responses) == 2
    assert result2.reward == 1.0
    assert result2.info["responses"] == env.responses
    assert (result1.metrics["num_responses"], result2.metrics["num_responses"]) == (1.0, 2.0)
    assert (
        env.render()
        == f"Prompt: Test\nResponse 1: {env.responses[0]}\nResponse 2: " + (env.responses[1])
    )


# --------------------------------------------------------------------------- by hand


def test_the_reward_is_the_preference_and_the_metrics_say_what_each_has_earned():
    env = env_of()
    env.reset()
    env.step(tokens("long"))
    result = env.step(tokens("no"))
    assert result.reward == pytest.approx(0.8)
    parts = {k: v for k, v in result.metrics.items() if k.startswith(("reward_", "pref"))}
    assert parts == pytest.approx({"preference": 0.9, "reward_first": 0.9, "reward_second": 0.1})


def test_without_a_judge_nothing_is_made_up():
    env = env_of(model=None)
    env.reset()
    for act in (lambda: env.step(tokens("a")), lambda: env.attach(object()), lambda: env.judge):
        with pytest.raises(ValueError, match=r"env\.preference_model and env\.human_feedback_fn"):
            act()


def test_a_response_ends_at_its_end_token_or_stop_string_and_is_never_cut_silently():
    env = env_of("Once END", stop_sequences=["END"], max_length=20)
    env.reset()
    env.step(torch.cat([tokens("abc"), tokens("more")]))
    env.step(tokens("de END f", end=False))
    assert env.responses == ["abc", "de "]
    env.reset()
    with pytest.raises(ValueError, match=r"21 tokens, env\.max_length is 20"):
        env.step(tokens("x" * 12))
    assert env.responses == []


def test_a_third_response_needs_a_reset():
    env = env_of("One", "Two")
    env.reset()
    env.step(tokens("a"))
    env.step(tokens("b"))
    with pytest.raises(RuntimeError, match="reset"):
        env.step(tokens("c"))
    assert env.reset().prompt == "Two" and env.responses == []


def test_a_conversation_is_judged_with_its_messages():
    seen = []

    def reward(prompts, responses, metadata=None):
        seen.extend(metadata)
        return [0.0] * len(responses)

    env = env_of(MESSAGES, model=reward)
    assert env.reset().metadata["messages"] == MESSAGES
    env.step(tokens("4"))
    assert env.step(tokens("5")).reward == 0.0
    assert [meta["messages"] for meta in seen] == [MESSAGES] * 2
    assert env.judge(["p"], ["a"], ["b"]) == [0.5]


def test_forks_do_not_share_responses():
    env = env_of()
    env.reset()
    env.step(tokens("mine"))
    other = env.fork()
    other.step(tokens("theirs"))
    assert (env.responses, other.responses) == (["mine"], ["mine", "theirs"])


# ------------------------------------------------------------------------ in a group


def episodes_of(env, *answers):
    """One finished episode for each ``(prompt index, text)``."""
    episodes = []
    for index, text in answers:
        episode = env.fork()
        episode.reset(index)
        assert episode.respond(tokens(text)).done
        episodes.append(episode)
    return episodes


def test_episodes_of_a_prompt_are_compared_with_each_other():
    env = env_of(*[Prompt("Same")] * 2)  # two starting states, for all that their prompt is one
    answers = [(0, "aaa"), (1, "c"), (0, "b"), (0, "cc"), (1, "dd")]
    scores = env.score(episodes_of(env, *answers))
    # Prompt 0: aaa-b 0.9, aaa-cc 0.9, b-cc 0.2. Prompt 1: c-dd 0.2.
    expected = [0.9, 0.2, (0.1 + 0.2) / 2, (0.1 + 0.8) / 2, 0.8]
    assert [reward for reward, _ in scores] == pytest.approx(expected)


def test_a_response_without_a_rival_is_refused_with_a_remedy():
    env = env_of("One", "Two")
    with pytest.raises(ValueError, match=r"algo=grpo with algo\.num_generations"):
        env.score(episodes_of(env, (0, "a"), (0, "b"), (1, "c")))


def test_a_failing_judge_names_itself_whatever_the_group():
    env = env_of(model=lambda prompt, a, b: 7)
    with pytest.raises(RewardError, match=r"returned 7: give the probability[\s\S]*'aaa'"):
        env.score(episodes_of(env, (0, "aaa"), (0, "b")))


@pytest.mark.parametrize(("option", "value"), [("timeout_s", 3.0), ("on_error", "skip")])
def test_options_of_episodes_that_are_scored_alone_are_refused(option, value):
    env = env_of()
    env.attach(object())
    setattr(env, option, value)
    with pytest.raises(ValueError, match=rf"env\.{option}={value!r}.* none can fail alone"):
        env.attach(object())


# ------------------------------------------------------------------- models on disk


def test_a_pairwise_model_on_disk_compares_and_does_not_just_reward(tmp_path):
    model = opinionated(PairwiseRewardModel)
    model.export(tmp_path)
    env = preference_env(TOKENIZER, ["One"], str(tmp_path))
    expected = env_of("One", model=model).judge(["One"], ["a"], ["bc"])
    assert env.judge(["One"], ["a"], ["bc"]) == pytest.approx(expected, abs=1e-6)
    apart = env_of("One", model=lambda p, r, metadata=None: rewards(model, p, r))
    assert abs(apart.judge(["One"], ["a"], ["bc"])[0] - expected[0]) > 1e-3


def test_a_reward_model_on_disk_is_loaded_as_reward_model(tmp_path):
    model = opinionated(RewardModel)
    model.export(tmp_path)
    env = preference_env(TOKENIZER, ["One"], str(tmp_path))
    expected = env_of("One", model=model).judge(["One"], ["a"], ["bc"])
    assert env.judge(["One"], ["a"], ["bc"]) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - 0.5) > 1e-3
    with pytest.raises(ValueError, match="is no sequence-classification checkpoint"):
        preference_env(TOKENIZER, ["One"], str(tmp_path / "nowhere"))


def test_a_reward_of_columns_that_no_row_has_is_refused_before_it_plays():
    prompts = [Prompt("a", {"answer": "4"})]
    for fn in (lambda completions, answer: 0, [lambda completions, answer: 0]):
        PreferenceComparisonEnv(tiny_tokenizer(), prompts, fn)
    with pytest.raises(ValueError, match="a parameter gold, which no row has"):
        PreferenceComparisonEnv(tiny_tokenizer(), prompts, lambda completions, gold: 0)


def test_a_reward_that_does_not_apply_compares_nothing():
    env = PreferenceComparisonEnv(tiny_tokenizer(), ["a"], lambda completions: [None, 1.0])
    env.reset(0)
    env.step(torch.tensor([65]))
    with pytest.raises(RewardError, match=r"does not apply \(None\).*\n.*'a'\n.*response"):
        env.step(torch.tensor([66]))
