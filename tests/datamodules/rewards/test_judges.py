"""What compares two responses: models, reward functions, callables and people."""

import math

import pytest
import torch
from judge_helpers import opinionated, rewards
from transformers import LlamaConfig, LlamaForSequenceClassification

from datamodules import RewardError, RewardFunction
from datamodules.rewards.judges import Judge, as_judge, human_judge, win_rates
from rlmodules import PairwiseRewardModel, RewardModel
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MESSAGES = [{"role": "user", "content": "What is 2+2?"}]
PROMPTS = ["One", "Two", "Three"]
FIRSTS = ["a", "bb", "a much longer answer"]
SECONDS = ["ccc", "b", "short"]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_length(prompts, responses, metadata=None):
    return [float(len(response)) for response in responses]


def classifier(num_labels=1, vocab_size=259):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=num_labels,
        attention_dropout=0.5,
        pad_token_id=0,
    )
    return LlamaForSequenceClassification(config)


# --------------------------------------------------------------------- what becomes a judge


def test_a_reward_function_prefers_by_bradley_and_terry():
    judge = as_judge(by_length, TOKENIZER)
    expected = [sigmoid(1 - 3), sigmoid(2 - 1), sigmoid(20 - 5)]
    assert judge(PROMPTS, FIRSTS, SECONDS) == pytest.approx(expected, abs=1e-12)
    assert as_judge(judge, TOKENIZER) is judge


def test_a_reward_that_differs_by_thousands_is_no_overflow():
    judge = as_judge(lambda p, r, metadata=None: [float(x) for x in r], TOKENIZER)
    assert judge(["p", "p"], ["-9000", "9000"], ["9000", "-9000"]) == [0.0, 1.0]


def test_a_response_of_many_pairs_is_rewarded_once_and_with_its_own_metadata():
    asked = []

    def reward(prompts, responses, metadata=None):
        asked.extend(zip(prompts, responses, [m["id"] for m in metadata], strict=True))
        return [0.0] * len(responses)

    judge = as_judge(RewardFunction(reward), TOKENIZER)
    metadata = [{"id": 1}, {"id": 1}, {"id": 2}]
    judge(["p"] * 3, ["a", "b", "a"], ["b", "c", "b"], metadata)
    wanted = {("p", "a", 1), ("p", "b", 1), ("p", "c", 1), ("p", "a", 2), ("p", "b", 2)}
    assert len(asked) == 5 and set(asked) == wanted


def test_a_callable_says_how_probable_it_is_that_the_first_is_better():
    asked = []

    def compare(prompt, response1, response2):
        asked.append((prompt, response1, response2))
        return 0.25

    assert as_judge(compare, TOKENIZER)(PROMPTS, FIRSTS, SECONDS) == [0.25] * 3
    assert asked == list(zip(PROMPTS, FIRSTS, SECONDS, strict=True))


@pytest.mark.parametrize("answer", [1.5, -0.1, float("nan"), None, "0.5", True])
def test_what_is_no_probability_is_refused_with_the_pair(answer):
    judge = as_judge(lambda prompt, a, b: answer, TOKENIZER)
    with pytest.raises(RewardError, match="probability") as caught:
        judge(["What?"], ["this"], ["that"])
    for shown in (repr(answer), "'What?'", "'this'", "'that'"):
        assert shown in str(caught.value)


def test_a_callable_that_raises_is_named_with_the_pair():
    def broken(prompt, a, b):
        raise KeyError("scores")

    with pytest.raises(RewardError, match=r"broken raised KeyError: 'scores'[\s\S]*'that'"):
        as_judge(broken, TOKENIZER)(["What?"], ["this"], ["that"])


@pytest.mark.parametrize("found", [[0.5], [0.5, 2.0], [0.5, "x"]])
def test_a_judge_must_return_a_probability_for_each_pair(found):
    judge = Judge(lambda prompts, firsts, seconds, metadata: found, "mine")
    with pytest.raises(RewardError, match="mine returned"):
        judge(["p", "q"], ["a", "b"], ["c", "d"])


@pytest.mark.parametrize("model", ["some/folder", 3])
def test_what_cannot_compare_is_refused(model):
    with pytest.raises(ValueError, match=f"preference_model={model!r} is neither"):
        as_judge(model, TOKENIZER)


# ---------------------------------------------------------------------------------- models


def test_a_pairwise_model_looks_at_both_texts():
    """Not the difference of two rewards: its comparison of the two counts."""
    model = opinionated(PairwiseRewardModel)
    judge = as_judge(model, TOKENIZER)
    found = judge(PROMPTS, FIRSTS, SECONDS)
    expected = []
    for prompt, first, second in zip(PROMPTS, FIRSTS, SECONDS, strict=True):
        ids = [torch.tensor([TOKENIZER(prompt + text)["input_ids"]]) for text in (first, second)]
        with torch.no_grad():
            logit = model.forward_pair(
                ids[0], torch.ones_like(ids[0]), ids[1], torch.ones_like(ids[1])
            )
        expected.append(logit.sigmoid().item())
    assert found == pytest.approx(expected, abs=1e-5)
    swapped = judge(PROMPTS, SECONDS, FIRSTS)
    assert swapped == pytest.approx([1 - chance for chance in found], abs=1e-5)
    apart = as_judge(RewardFunction(lambda p, r, metadata=None: rewards(model, p, r)), TOKENIZER)
    assert max(abs(a - b) for a, b in zip(found, apart(PROMPTS, FIRSTS, SECONDS))) > 1e-3  # noqa: B905


def test_a_reward_model_in_memory_rewards_and_keeps_its_mode():
    model = opinionated(RewardModel, dropout_prob=0.5).train()
    found = as_judge(model, TOKENIZER)(PROMPTS, FIRSTS, SECONDS)
    assert model.training
    first, second = rewards(model, PROMPTS, FIRSTS), rewards(model, PROMPTS, SECONDS)
    expected = [sigmoid(a - b) for a, b in zip(first, second, strict=True)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert max(abs(chance - 0.5) for chance in found) > 1e-3


def test_models_read_a_conversation_through_the_chat_template():
    model = opinionated(RewardModel)
    judge = as_judge(model, TOKENIZER)
    found = judge(["ignored"], ["4"], ["5 or so"], [{"messages": MESSAGES}])
    texts = [
        TOKENIZER.apply_chat_template(
            [*MESSAGES, {"role": "assistant", "content": said}], tokenize=False
        )
        for said in ("4", "5 or so")
    ]
    assert texts[0] == "<bos>[user]What is 2+2?<eos>[assistant]4<eos>"
    ids = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in texts]
    first, second = model.predict_ids(ids)
    assert found == pytest.approx([sigmoid(first - second)], abs=1e-6)
    assert abs(found[0] - 0.5) > 1e-3


def test_a_sequence_classifier_in_memory_scores_each_text_alone():
    model = classifier().train()
    judge = as_judge(model, TOKENIZER)
    found = judge(PROMPTS, FIRSTS, SECONDS)
    assert model.training
    scores = []
    with torch.no_grad():
        for side in (FIRSTS, SECONDS):
            texts = [p + s for p, s in zip(PROMPTS, side, strict=True)]
            ids = [torch.tensor([TOKENIZER(text)["input_ids"]]) for text in texts]
            scores.append([model.eval()(input_ids=row).logits.item() for row in ids])
    expected = [sigmoid(a - b) for a, b in zip(*scores, strict=True)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert max(abs(chance - 0.5) for chance in found) > 1e-3


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: classifier(num_labels=2), "2 outputs"),
        (lambda: classifier(vocab_size=len(TOKENIZER) - 1), "knows 258 tokens"),
        (lambda: torch.nn.Linear(2, 1), "Linear has no outputs"),
    ],
)
def test_a_model_that_does_not_give_one_score_of_these_tokens_is_refused(model, named):
    with pytest.raises(ValueError, match=named):
        as_judge(model(), TOKENIZER)


# ---------------------------------------------------------------------------------- people


@pytest.mark.parametrize(
    ("verdict", "chance"),
    [(1, 1.0), (-1, 0.0), (0, 0.5), (1.0, 1.0), (-0.5, 0.25), (True, 1.0), (False, 0.0)],
)
def test_a_verdict_is_read_as_documented(verdict, chance):
    assert human_judge(lambda p, a, b: verdict, None)(["p"], ["a"], ["b"]) == [chance]


@pytest.mark.parametrize("verdict", [None, 2, -1.01, float("nan"), "first", "1"])
def test_nonsense_is_refused(verdict):
    with pytest.raises(RewardError, match="1 or True where the first response is better"):
        human_judge(lambda p, a, b: verdict, None)(["p"], ["a"], ["b"])


def test_where_people_have_no_opinion_the_model_decides():
    asked = []

    def model(prompt, a, b):
        asked.append(prompt)
        return 0.75

    opinions = {"One": 1, "Two": None, "Three": -1}
    judge = human_judge(lambda p, a, b: opinions[p], as_judge(model, TOKENIZER))
    assert judge(PROMPTS, FIRSTS, SECONDS) == [1.0, 0.75, 0.0]
    assert asked == ["Two"]
    opinions["Two"] = 0
    assert judge(PROMPTS, FIRSTS, SECONDS) == [1.0, 0.5, 0.0]
    assert asked == ["Two"]


# --------------------------------------------------------------------------------- groups


def test_win_rates_are_means_over_the_rivals_of_each_group():
    chances = {("a", "b"): 0.9, ("a", "c"): 0.6, ("b", "c"): 0.2, ("x", "y"): 1.0}
    judge = as_judge(lambda prompt, first, second: chances[first, second], TOKENIZER)
    responses = ["a", "x", "b", "c", "y"]
    rates = win_rates(judge, ["p"] * 5, responses, None, [[0, 2, 3], [1, 4]])
    expected = [(0.9 + 0.6) / 2, 1.0, (0.1 + 0.2) / 2, (0.4 + 0.8) / 2, 0.0]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_equal_responses_are_a_draw_and_nobody_is_asked():
    judge = as_judge(lambda prompt, first, second: 1 / 0, TOKENIZER)
    assert win_rates(judge, ["p"] * 3, ["a"] * 3, None, [[0, 1, 2]]) == [0.5] * 3
