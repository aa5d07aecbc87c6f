"""Several rewards as one: weights, names, and what does not apply."""

import re

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_config import composed

from datamodules import TextGenerationEnv
from datamodules.rewards.functions import RewardError
from datamodules.rewards.weighting import WeightedReward, as_reward
from rlmodules import schemas
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models.weighted import reward_of, weighted


@pytest.fixture(autouse=True)
def clean_hydra():
    schemas.register()
    yield
    GlobalHydra.instance().clear()


def words(completions, **kwargs):
    return [float(len(text.split())) for text in completions]


def polite(prompts, responses, metadata=None):
    return [1.0 if "please" in text else None for text in responses]


async def right(response, answer=None):
    return None if answer is None else float(answer in response)


ROWS = [{"answer": "4"}, {}, {}]
TEXTS = ["it is 4", "please go on", "no"]


def test_the_sum_leaves_out_what_does_not_apply_as_in_trl():
    reward = WeightedReward({"polite": polite, "right": right}, {"right": 2.0, "polite": 0.5})
    reward.require({"answer"})
    assert reward(["p"] * 3, TEXTS, ROWS) == [2.0, 0.5, None]


def test_each_component_is_a_metric_where_it_applies():
    from datamodules.rewards.calling import Samples

    reward = WeightedReward([words, polite, words], [1.0, -1.0, 0.0])
    assert reward.scores(Samples(["p"] * 2, TEXTS[:2], [{}] * 2)) == [
        (3.0, {"reward_words": 3.0, "reward_words_2": 3.0}),
        (2.0, {"reward_words": 3.0, "reward_polite": 1.0, "reward_words_2": 3.0}),
    ]


def test_an_environment_takes_several_and_gives_their_metrics():
    tokenizer = tiny_tokenizer()
    env = TextGenerationEnv(tokenizer, ["a"], reward_fn={"words": words, "polite": polite})
    for text, reward, unscored in (("two words", 2.0, None), ("please", 2.0, None)):
        env.reset(0)
        tokens = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        result = env.step(torch.tensor(tokens))
        assert (result.reward, result.info.get("unscored")) == (reward, unscored)
    assert result.metrics["reward_polite"] == 1.0
    env = TextGenerationEnv(tokenizer, ["a"], reward_fn=[polite])
    env.reset(0)
    result = env.step(torch.tensor([*tokenizer("no")["input_ids"], tokenizer.eos_token_id]))
    assert (result.reward, result.info["unscored"]) == (0.0, True)


def fails(completions):
    raise KeyError("lost")


WRONG = [
    ({}, None, "components is empty"),
    ({"a b": words}, None, "'a b' is no name for a metric"),
    ({"std": words}, None, "'std' is no name for a metric"),
    ({"a": words}, {"b": 1.0}, "differ in ['a', 'b']: give a weight to each"),
    ({"a": words, "b": words}, {"a": 1.0}, "differ in ['b']"),
    ([words, polite], [1.0], "1 weights for the 2 rewards words, polite"),
    ({"a": words}, {"a": float("nan")}, "'a' weighs nan"),
    ({"a": words}, {"a": True}, "'a' weighs True"),
    ({"a": words}, {"a": "1"}, "'a' weighs '1'"),
]


@pytest.mark.parametrize(("components", "weights", "sentence"), WRONG)
def test_names_and_weights_that_do_not_fit_are_refused(components, weights, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        WeightedReward(components, weights)


def test_weights_of_one_reward_are_refused_and_a_component_that_fails_is_named():
    with pytest.raises(ValueError, match="of several rewards, and there is one"):
        as_reward(words, [1.0])
    with pytest.raises(RewardError, match="the reward function fails raised KeyError"):
        WeightedReward([words, fails])(["p"], ["r"])


# ------------------------------------------------------------------- as one types it


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "typed_rewards.py").write_text(
        "def words(completions, **kwargs):\n    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


TYPED = [
    ("{short: length, own: typed_rewards:words}", "{short: 10, own: 1}", 10 * 0.02 + 5),
    ("{own: {path: typed_rewards:words, run_in: main}}", "null", 5.0),
    ("{length: {timeout_s: 3}, sentiment: {}}", "{length: 1, sentiment: 0}", 0.02),
    ("{own: {reward: function, path: typed_rewards:words, retries: 0}}", "{own: -1.5}", -7.5),
]


@pytest.mark.parametrize(("components", "weights", "expected"), TYPED)
def test_components_are_typed_on_the_command_line(mine, components, weights, expected):
    overrides = [f"reward.components={components}", f"reward.weights={weights}"]
    cfg = composed("reward=weighted", *overrides, "model=tiny")
    reward = instantiate(cfg.env).keywords["reward_fn"]
    assert reward(["p"], ["a bcd"]) == pytest.approx([expected])


def test_a_component_has_the_time_limit_of_all_or_its_own(mine):
    made = weighted({"a": "length", "b": {"reward": "length", "timeout_s": 3.0}}, timeout_s=9.0)
    assert [r.timeout_s for r in made.components.values()] == [9.0, 3.0]


UNTYPED = [
    ("{a: lenght}", "components.a: 'lenght' is no reward: use function, judge"),
    ("{a: {weight: 1}}", "components.a: {'weight': 1"),
    ("{length: {path: 3}}", "components.length: reward=length: got an unexpected keyword"),
    ("{judge: {model: a}}", "components.judge: reward=judge: missing a required argument: 'url'"),
    ("{a: no_such_module:fn}", "components.a: reward.path='no_such_module:fn' cannot be imported"),
    ("[length]", "must be rewards by name"),
    ("{}", "must be rewards by name"),
]


@pytest.mark.parametrize(("components", "sentence"), UNTYPED)
def test_a_component_that_is_none_is_refused_by_its_name(components, sentence):
    cfg = composed("reward=weighted", f"reward.components={components}", "model=tiny")
    given = OmegaConf.to_container(cfg.reward.components)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        weighted(given)


def test_what_is_given_to_a_trainer_may_be_a_name():
    assert reward_of("length")(["p"], ["a b"]) == [0.02] and reward_of(words) is words
