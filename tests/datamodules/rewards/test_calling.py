"""Rewards are called by the names of their parameters; what cannot be told is refused."""

import functools
from decimal import Decimal

import numpy as np
import pytest
import torch

from datamodules import TextGenerationEnv
from datamodules.rewards.calling import Conversation, Samples
from datamodules.rewards.functions import RewardError, RewardFunction
from datamodules.text.prompts import Prompt
from rlmodules.models.embedded import tiny_tokenizer

ROWS = [{"answer": "4", "level": 1}, {"answer": "6", "level": 2}]
CHAT = [{**row, "messages": Conversation([{"role": "user", "content": q}])}
        for row, q in zip(ROWS, ("2+2?", "3+3?"), strict=True)]  # fmt: skip
TEXT = Samples(["p1", "p2"], ["r1", "r2"], ROWS, [[1, 2], [3]])
TALK = Samples(["<p1>", "<p2>"], ["r1", "r2"], CHAT, [[1, 2], [3]])
MESSAGES = [[{"role": "assistant", "content": text}] for text in ("r1", "r2")]
QUESTIONS = [[{"role": "user", "content": q}] for q in ("2+2?", "3+3?")]


def given(source, samples=TEXT):
    """What a function of these parameters is called with, by name."""
    seen = []
    names = {}
    exec(
        f"def fn({source}):\n    seen.append(dict(locals()))\n    return [0.0] * 2",
        {"seen": seen},
        names,
    )
    reward = RewardFunction(names["fn"])
    reward.require({name for row in samples.metadata for name in row})
    assert reward.scores(samples) == [(0.0, {}), (0.0, {})]
    return seen[0]


BATCH = [
    # parameters, given on text rows, given on chat rows
    ("completions", {"completions": ["r1", "r2"]}, {"completions": MESSAGES}),
    ("completions, answer", {"completions": ["r1", "r2"], "answer": ["4", "6"]},
     {"completions": MESSAGES, "answer": ["4", "6"]}),
    ("answer, completions", {"completions": ["r1", "r2"], "answer": ["4", "6"]},
     {"completions": MESSAGES, "answer": ["4", "6"]}),
    ("completions, prompts", {"prompts": ["p1", "p2"], "completions": ["r1", "r2"]},
     {"prompts": QUESTIONS, "completions": MESSAGES}),
    ("completions, other=7, *, level", {"completions": ["r1", "r2"], "other": 7, "level": [1, 2]},
     {"completions": MESSAGES, "other": 7, "level": [1, 2]}),
    ("completion_ids, answer=None", {"completion_ids": [[1, 2], [3]], "answer": ["4", "6"]},
     {"completion_ids": [[1, 2], [3]], "answer": ["4", "6"]}),
    ("prompts, responses", {"prompts": ["p1", "p2"], "responses": ["r1", "r2"]},
     {"prompts": ["<p1>", "<p2>"], "responses": ["r1", "r2"]}),
    ("prompts, responses, metadata=None",
     {"prompts": ["p1", "p2"], "responses": ["r1", "r2"], "metadata": ROWS},
     {"prompts": ["<p1>", "<p2>"], "responses": ["r1", "r2"], "metadata": CHAT}),
    ("questions, texts, metadata=None",
     {"questions": ["p1", "p2"], "texts": ["r1", "r2"], "metadata": ROWS},
     {"questions": ["<p1>", "<p2>"], "texts": ["r1", "r2"], "metadata": CHAT}),
    ("p, r, /, metadata", {"p": ["p1", "p2"], "r": ["r1", "r2"], "metadata": ROWS},
     {"p": ["<p1>", "<p2>"], "r": ["r1", "r2"], "metadata": CHAT}),
]  # fmt: skip


@pytest.mark.parametrize(("source", "text", "chat"), BATCH)
def test_a_function_is_given_what_it_names(source, text, chat):
    assert given(source) == text
    assert given(source, TALK) == chat


def test_one_with_keywords_is_given_what_trl_gives():
    names = {"prompts", "completions", "completion_ids", "answer", "level", "log_metric"}
    for source in ("**kwargs", "completions, **kwargs", "prompts, *args, **kwargs"):
        found = given(source)
        found = found | found.pop("kwargs")
        found.pop("args", None)
        assert set(found) == names and found["completions"] == ["r1", "r2"]
        assert found["answer"] == ["4", "6"] and found["completion_ids"] == [[1, 2], [3]]
    assert given("prompts, responses, **kw")["kw"]["metadata"] == ROWS


def test_a_function_of_one_response_is_called_once_for_each():
    def contract(prompt, generated, full_text):
        return {"p1": 1.0, "p2": 2.0}[prompt] if full_text == prompt + generated else None

    def own(response, answer, metadata):
        return float(answer) + metadata["level"]

    def chat(completion, prompt):
        return len(completion[0]["content"]) if prompt.startswith("<") else None

    assert [r for r, _ in RewardFunction(contract).scores(TEXT)] == [1.0, 2.0]
    assert [r for r, _ in RewardFunction(own).scores(TEXT)] == [5.0, 8.0]
    assert [r for r, _ in RewardFunction(chat).scores(TALK)] == [2.0, 2.0]


class Scorer:
    scale = 2.0

    def __call__(self, completions, answer):
        return [self.scale * (a == "4") for a in answer]

    def method(self, completions, answer):
        return self(completions, answer)

    async def later(self, completions, answer):
        return self(completions, answer)


def decorated(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


CALLABLES = {
    "object": Scorer(),
    "method": Scorer().method,
    "coroutine method": Scorer().later,
    "partial": functools.partial(lambda scale, completions, answer: [2.0 * (a == "4") for a in answer], 9),  # noqa: E501
    "decorated": decorated(lambda completions, answer: [2.0 * (a == "4") for a in answer]),
    "bound by keyword": functools.partial(lambda completions, answer, level: [level, 0], level=2.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", CALLABLES)
def test_whatever_can_be_called_is_called_by_name(kind):
    assert [r for r, _ in RewardFunction(CALLABLES[kind]).scores(TEXT)] == [2.0, 0.0]


REFUSED = [
    (lambda a, b: 0, r"\(a, b\) cannot be told which parameter is the responses.*completions"),
    (lambda *args: 0, r"\(\*args\) cannot be told.*functools.wraps"),
    (lambda *args, **kwargs: 0, r"\(\*args, \*\*kwargs\) cannot be told.*functools.wraps"),
    (lambda prompts, /, completions: 0, "cannot be told"),
    (lambda prompts, texts: 0, "cannot be told"),
    (lambda answer, level: 0, "cannot be told"),
    (lambda: 0, "cannot be told"),
    (Scorer, "is a class: give an object"),
    (print, "cannot be told"),
]


@pytest.mark.parametrize(("fn", "sentence"), REFUSED)
def test_what_cannot_be_told_is_refused_by_the_names_it_may_have(fn, sentence):
    with pytest.raises(ValueError, match=sentence):
        RewardFunction(fn)


COLUMNS = [
    (lambda completions, gold: 0, "a parameter gold, which no row has; columns.*answer, level"),
    (lambda completions, *, gold, **kw: 0, "a parameter gold"),
    (lambda completion, gold: 0, "a parameter gold"),
    (lambda completions, trainer_state: 0, "trainer_state.*the state of TRL's trainer"),
    (lambda completions, log_extra: 0, "log_extra.*TRL's table"),
    (lambda level, answer, metadata=None: 0, "cannot be told what it takes: answer, level"),
    (lambda prompts, answer, metadata=None: 0, "cannot be told what it takes: answer"),
]


@pytest.mark.parametrize(("fn", "sentence"), COLUMNS)
def test_an_environment_refuses_what_no_row_has_before_it_plays(fn, sentence):
    prompts = [Prompt("a", ROWS[0]), Prompt("b", ROWS[1])]
    with pytest.raises(ValueError, match=sentence):
        TextGenerationEnv(tiny_tokenizer(), prompts, reward_fn=fn)


def test_a_column_that_some_rows_lack_is_none_there():
    seen = []

    def fn(completions, gold):
        seen.append(gold)
        return [0.0] * len(gold)

    reward = RewardFunction(fn)
    reward.require({"gold"})
    reward.scores(Samples(["a", "b"], ["c", "d"], [{"gold": 1}, {}]))
    reward.scores(Samples(["a"], ["c"], [{}]))  # other rows of the file have it
    assert seen == [[1, None], [None]]


def test_a_column_called_as_a_text_is_never_taken_for_it():
    rows = [{"responses": "R", "metadata": "M", "response": "S", "completions": "C"}]
    found = []

    def trl(completions, responses, metadata):
        found.append((completions, responses, metadata))
        return [0.0]

    def contract(prompts, responses, metadata=None):
        found.append((responses, metadata))
        return [0.0]

    for fn in (trl, contract):
        reward = RewardFunction(fn)
        reward.require({"responses", "metadata", "response"})
        reward.scores(Samples(["p"], ["r"], rows))
    assert found == [(["r"], ["R"], ["M"]), (["r"], rows)]
    for fn in (lambda completions: 0, lambda prompt, response: 0, lambda prompts, responses: 0):
        with pytest.raises(ValueError, match="which is a column of the rows too: rename"):
            RewardFunction(fn).require(set(rows[0]))


def test_token_ids_are_asked_for_where_there_are_texts_alone():
    with pytest.raises(RewardError, match="asks for completion_ids, and here there are texts"):
        RewardFunction(lambda completion_ids: [0.0])(["p"], ["r"])


RESULTS = [
    np.array([1.0, 0.0]), np.array([1, 0]), torch.tensor([1.0, 0.0]), torch.tensor([[1, 0]])[0],
    (True, False), [np.bool_(True), np.float32(0)], [Decimal(1), Decimal(0)], iter([1, 0]),
    [torch.tensor(1.0), torch.tensor([0.0])], torch.tensor([1.0, 0.0], requires_grad=True),
]  # fmt: skip


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_numbers_of_any_kind_are_rewards(result):
    found = RewardFunction(lambda completions: result)(["p", "q"], ["r", "s"])
    assert found == [1.0, 0.0] and all(type(reward) is float for reward in found)


@pytest.mark.parametrize("result", [{1.0, 0.0}, {"a": 1}, "10", 1.0, object(), [1j, 0], None])
def test_what_is_no_list_of_numbers_is_an_error(result):
    with pytest.raises(RewardError, match="returned"):
        RewardFunction(lambda completions: result)(["p", "q"], ["r", "s"])


def test_none_is_no_reward_and_nan_is_an_error():
    reward = RewardFunction(lambda completions: [None, 0.5])
    assert reward(["p", "q"], ["r", "s"]) == [None, 0.5]
    with pytest.raises(RewardError, match="returned nan, which is no finite number"):
        RewardFunction(lambda completions: [None, float("nan")])(["p", "q"], ["r", "s"])


def test_what_is_logged_is_a_metric_of_each_response():
    def fn(completions, log_metric):
        log_metric("accuracy", np.float32(0.25))
        log_metric("accuracy", 0.75)
        return [1.0] * len(completions)

    assert RewardFunction(fn).scores(TEXT) == [(1.0, {"logged_accuracy": 0.5})] * 2
    with pytest.raises(RewardError, match="logged 'a'=nan, which is no finite number"):
        RewardFunction(lambda completions, log_metric: log_metric("a", float("nan")) or [1, 1])(
            ["p", "q"], ["r", "s"]
        )


@pytest.mark.parametrize("chat", [False, True])
def test_an_environment_gives_completions_as_trl_does(chat):
    tokenizer, seen = tiny_tokenizer(), []
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    content = [{"role": "user", "content": "Say"}] if chat else "Say"

    def fn(prompts, completions, completion_ids, answer):
        seen.append((prompts, completions, completion_ids, answer))
        return [1.0]

    env = TextGenerationEnv(tokenizer, [Prompt(content, {"answer": "4"})], reward_fn=fn)
    env.reset(0)
    tokens = [*tokenizer("yes")["input_ids"], tokenizer.eos_token_id]
    assert env.step(torch.tensor(tokens)).reward == 1.0
    completion = [{"role": "assistant", "content": "yes"}] if chat else "yes"
    assert seen == [([content], [completion], [tokens], ["4"])]
