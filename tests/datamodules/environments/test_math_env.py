"""The maths environment: what is right and in form, what is held out, which files it reads."""

import json
import re
import time

import pytest
import torch

from datamodules.environments.maths import MathEnv, create_math_problem_env
from datamodules.environments.multi_objective import MultiObjectiveRewardEnv
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
ROWS = [
    {"question": f"Tom has {n} apples and buys 3. How many has he?", "answer": f"...\n#### {n + 3}"}
    for n in range(20)
]


def encode(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def answer(env: MathEnv, text: str, index: int = 0):
    env.reset(index)
    return env.step(torch.tensor([*encode(text), EOS]))


def write(tmp_path, rows, name="train.jsonl") -> str:
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def texts(env: MathEnv, indices) -> set[str]:
    return {env.reset(index).metadata["question"] for index in indices}


# --------------------------------------------------------------------------- the reward


def test_the_documented_call_gives_the_documented_components():
    tokenizer = TOKENIZER
    # Math problem solving (correctness + formatting rewards)
    math_env = create_math_problem_env(tokenizer)
    assert isinstance(math_env, MultiObjectiveRewardEnv)
    assert set(math_env.reward_components) == {"correctness", "formatting"}
    assert math_env.reward_weights == {"correctness": 1.0, "formatting": 0.1}
    result = answer(math_env, f" {math_env.reset(0).metadata['answer']}")
    assert result.done and result.reward == pytest.approx(1.1)
    assert result.metrics["reward_correctness"] == result.metrics["correct"] == 1.0
    assert result.metrics["reward_formatting"] == 1.0


@pytest.mark.parametrize(
    ("response", "correct", "formatting"),
    [
        (" 12", 1, 1),
        ("12.", 1, 1),
        (" 12\nand so on", 1, 1),  # the line's end is the answer's
        (" 13", 0, 1),
        (" 12, which is the sum", 1, 0),
        (" 7 + 5 = 12", 1, 0),
        (" 7 + 5", 0, 0),
        ("Answer: 4", 0, 0),
        ("incorrect Answer: 12", 0, 0),
        ("incorrect Answer:", 0, 0),
        (" 10 11 12", 1, 0),
        ("", 0, 0),
    ],
)
def test_what_is_right_and_what_is_in_form(response, correct, formatting):
    env = MathEnv(TOKENIZER, seed=3)
    env._starts[0].metadata["answer"] = "12"
    result = answer(env, response)
    assert result.metrics["correct"] == result.metrics["reward_correctness"] == correct
    assert result.metrics["reward_formatting"] == formatting
    assert result.reward == pytest.approx(correct + 0.1 * formatting)


@pytest.mark.parametrize(
    ("response", "correct", "formatting"),
    [
        ("2 + 3 = 5.\n#### 5", 1, 1),
        ("#### 5", 1, 1),
        ("2 + 3 = 5.\n#### 5\n", 1, 1),
        ("2 + 3 = 5.\n#### 6", 0, 1),
        ("2 + 3 = 5.", 1, 0),
        ("#### 5\nThat was easy.", 1, 0),
        ("#### 4\n#### 5", 1, 0),
        ("2 + 3 = 5.\n#### five apples", 0, 0),
        ("so it is#### 5", 1, 0),
        ("#### 5 is the number", 1, 0),
        ("####", 0, 0),
    ],
)
def test_with_reasoning_the_form_is_one_mark_in_the_last_line(response, correct, formatting):
    env = MathEnv(TOKENIZER, reasoning=True)
    env._starts[0].metadata["answer"] = "5"
    result = answer(env, response)
    assert result.metrics["correct"] == correct
    assert result.metrics["reward_formatting"] == formatting


def test_weights_are_the_users():
    env = MathEnv(TOKENIZER, reward_weights={"correctness": 2.0, "formatting": 0.0})
    assert answer(env, env.reset(0).metadata["answer"]).reward == 2.0
    with pytest.raises(ValueError, match="formatting"):
        MathEnv(TOKENIZER, reward_weights={"correctness": 2.0})


def test_512_answers_are_scored_in_much_less_than_a_second():
    env = MathEnv(TOKENIZER)
    episodes = [env.fork() for _ in range(512)]
    for number, episode in enumerate(episodes):
        right = episode.reset(number % len(env)).metadata["answer"]
        episode.respond(torch.tensor([*encode(f"It is 1 + 1 and so on, {right}."), EOS]))
    began = time.process_time()
    scores = env.score(episodes)
    assert time.process_time() - began < 1
    assert [metrics["correct"] for _, metrics in scores] == [1.0] * 512


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": 7}, r"env\.difficulty=7: the levels are 1 to 6"),
        ({"num_problems": 0}, r"env\.num_problems=0"),
        ({"num_held_out": -1}, r"env\.num_held_out=-1"),
        ({"num_problems": 300}, r"env\.num_problems=300.* leaves 22\d .*lower them"),
        ({"num_held_out": 423}, r"env\.num_held_out=423.* leaves 0 "),
        ({"eval_path": "x.jsonl"}, r"env\.eval_path='x\.jsonl' without env\.path"),
        ({"path": "x.jsonl", "difficulty": 2}, r"env\.difficulty=2 .*env\.path='x\.jsonl'"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        MathEnv(TOKENIZER, **options)


# -------------------------------------------------------------------------- the environment


def test_held_out_problems_are_named_and_are_not_trained_on():
    env = MathEnv(TOKENIZER, num_problems=100, num_held_out=30)
    assert len(env) == 130 and list(env.held_out) == list(range(100, 130))
    assert len(texts(env, range(100))) == 100
    assert not texts(env, range(100)) & texts(env, env.held_out)
    assert list(MathEnv(TOKENIZER, num_held_out=0).held_out) == []


def test_prompts_are_short_and_plain_unless_a_conversation_is_asked_for():
    env = MathEnv(TOKENIZER)
    observation = env.reset(0)
    assert observation.prompt == f"Calculate:\n{observation.metadata['question']} ="
    assert env.stop_sequences == ("\n",)
    words = MathEnv(TOKENIZER, difficulty=5).reset(0)
    assert words.prompt == (
        f"Question: {words.metadata['question']}\nAnswer with the number only.\nAnswer:"
    )
    chat = MathEnv(TOKENIZER, chat=None)
    assert chat.stop_sequences == ()
    question = chat.reset(0).metadata["question"]
    said = f"Calculate {question}.\nAnswer with the number only."
    assert chat.reset(0).metadata["messages"] == [{"role": "user", "content": said}]
    assert said in chat.reset(0).prompt
    plain_tokenizer = tiny_tokenizer()
    plain_tokenizer.chat_template = None
    assert MathEnv(plain_tokenizer, chat=None).reset(0).prompt.startswith("Calculate:\n")
    with pytest.raises(ValueError, match="no chat template"):
        MathEnv(plain_tokenizer, chat=True).reset(0)


def test_the_answer_is_not_in_what_the_policy_reads():
    env = MathEnv(TOKENIZER, difficulty=2)
    for index in range(20):
        observation = env.reset(index)
        assert observation.prompt == TOKENIZER.decode(observation.input_ids)
        assert observation.prompt.endswith("=")


# --------------------------------------------------------------------------------- files


def test_a_gsm8k_file_is_read_split_and_scored(tmp_path):
    path = write(tmp_path, ROWS)
    env = MathEnv(TOKENIZER, path=path, num_held_out=5, reasoning=True)
    assert len(env) == 20 and list(env.held_out) == [15, 16, 17, 18, 19]
    assert texts(env, range(20)) == {row["question"] for row in ROWS}
    n = int(re.search(r"\d+", env.reset(0).metadata["question"])[0])
    assert answer(env, f"He has {n} + 3 = {n + 3}.\n#### {n + 3}").reward == pytest.approx(1.1)
    assert answer(env, f"#### {n}").reward == pytest.approx(0.1)
    assert "####" in env.reset(0).prompt
    again = MathEnv(TOKENIZER, path=path, num_held_out=5)
    other = MathEnv(TOKENIZER, path=path, num_held_out=5, seed=1)
    assert texts(again, again.held_out) == texts(env, env.held_out)
    assert texts(other, other.held_out) != texts(env, env.held_out)


def test_a_problem_of_the_held_out_file_is_not_trained_on(tmp_path):
    path, eval_path = write(tmp_path, ROWS), write(tmp_path, ROWS[:6], "test.jsonl")
    env = MathEnv(TOKENIZER, path=path, eval_path=eval_path, num_held_out=6)
    assert texts(env, env.held_out) == {row["question"] for row in ROWS[:6]}
    assert texts(env, range(14)) == {row["question"] for row in ROWS[6:]}
    few = MathEnv(TOKENIZER, path=path, eval_path=eval_path, num_held_out=2, num_problems=3)
    assert len(few) == 5 and len(few.held_out) == 2


def test_answers_of_a_file_may_be_formulas(tmp_path):
    rows = [{"question": "Expand (x+1)^2.", "answer": "#### x^2+2x+1"}, ROWS[0]]
    env = MathEnv(TOKENIZER, path=write(tmp_path, rows), num_held_out=0, reasoning=True)
    index = next(i for i in range(2) if "x" in env.reset(i).metadata["answer"])
    assert answer(env, "#### 1 + 2x + x^2", index).reward == pytest.approx(1.1)


@pytest.mark.parametrize("gold", ["\\frac{1}{", "x +", "5 ?? 6", "}{", "x" * 400])
def test_an_expected_answer_that_nobody_can_read_is_refused(tmp_path, gold):
    row = {"question": "What?", "answer": f"#### {gold}"}
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2.* cannot be read as a number") as e:
        MathEnv(TOKENIZER, path=write(tmp_path, [ROWS[0], row]), num_held_out=0)
    assert gold[:100] in str(e.value).replace("\\\\", "\\")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("not JSON", "line 2"),
        ({"question": "What?"}, r"line 2.*'answer'"),
        ({"question": "What?", "answer": 5}, r"line 2.*'answer'"),
        ({"question": " ", "answer": "#### 5"}, r"line 2.*'question' is empty"),
        ({"question": "What?", "answer": "it is 5"}, r"line 2.*'####'.*it is 5"),
        ({"question": "What?", "answer": "####"}, r"line 2.*'####'"),
        ([5], "line 2"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    path = write(tmp_path, [ROWS[0], row])
    with pytest.raises(ValueError, match=message) as error:
        MathEnv(TOKENIZER, path=path, num_held_out=0)
    assert "train.jsonl" in str(error.value)


def test_a_missing_or_too_small_file_is_named_by_its_option(tmp_path):
    path = write(tmp_path, ROWS)
    with pytest.raises(FileNotFoundError, match=r"env\.eval_path='.*nowhere\.jsonl'"):
        MathEnv(TOKENIZER, path=path, eval_path=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(ValueError, match=r"env\.num_held_out=200 would hold out all 20"):
        MathEnv(TOKENIZER, path=path, num_held_out=200)
    assert len(MathEnv(TOKENIZER, path=path).held_out) == 2  # a tenth
    with pytest.raises(ValueError, match=r"env\.num_held_out=21: .* holds 20 problems"):
        MathEnv(TOKENIZER, path=path, eval_path=path, num_held_out=21)
    with pytest.raises(ValueError, match=r"env\.num_problems=19: .* has 15 problems"):
        MathEnv(TOKENIZER, path=path, num_held_out=5, num_problems=19)
    with pytest.raises(ValueError, match=r"env\.num_held_out=20 would hold out all 20"):
        MathEnv(TOKENIZER, path=path, num_held_out=20)
    with pytest.raises(ValueError, match="no problems"):
        MathEnv(TOKENIZER, path=write(tmp_path, [], "empty.jsonl"), num_held_out=0)
