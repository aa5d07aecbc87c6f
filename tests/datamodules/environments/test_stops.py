"""A stop sequence ends a response; one that closes what the response opened is part of it."""

import re

import pytest
import torch

from datamodules.environments.code import CodeGenerationEnv
from datamodules.environments.maths import MathEnv
from datamodules.environments.reasoning import extract
from datamodules.environments.stops import up_to_stop
from datamodules.environments.text import TextGenerationEnv
from datamodules.rewards.answers import is_correct
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()

CLOSING = [
    ("<answer>5</answer> more", "</answer>", "<answer>5</answer>"),
    ("<answer>5</answer>\nmore", "</answer>\n", "<answer>5</answer>\n"),
    ("<answer>5\n</answer> more", "\n</answer>", "<answer>5\n</answer>"),
    ('<answer id="1">5</answer> more', "</answer>", '<answer id="1">5</answer>'),
    ("[ANSWER]5[/ANSWER] more", "[/ANSWER]", "[ANSWER]5[/ANSWER]"),
    ("<think>so</think>5", "</think>", "<think>so</think>"),
    ("\\boxed{5} more", "}", "\\boxed{5}"),
    ("so $5$ more", "$", "so "),
    ("so (5) more", ")", "so (5)"),
    ("```\nx\n``` more", "\n```", "```\nx\n```"),
]
NOT_CLOSING = [
    ("5</answer> more", "</answer>", "5"),
    ("<answers>5</answer> more", "</answer>", "<answers>5"),
    ("5\nQuestion: 6", "\nQuestion:", "5"),
    ("5} more", "}", "5"),
    ("x = 1\n``` more", "\n```", "x = 1"),
    ("no stop", "</answer>", "no stop"),
    ("<answer>5", "</answer>", "<answer>5"),
    ("<answer>5", "<answer>", ""),
]


@pytest.mark.parametrize(("text", "stop", "kept"), CLOSING + NOT_CLOSING)
def test_a_text_ends_at_its_stop_sequence(text, stop, kept):
    assert up_to_stop(text, (stop,)) == kept
    assert up_to_stop(text, ("zzz", stop, "qqq")) == kept


def test_the_first_stop_counts_and_what_the_prompt_has_begun_is_none():
    assert up_to_stop("a\nb</x>", ("</x>", "\n")) == "a"
    assert up_to_stop("<think>\n5</think>", ("\n", "</think>"), 8) == "<think>\n5</think>"


def said(env, text):
    env.reset(0)
    env.respond(torch.tensor(TOKENIZER.encode(text, add_special_tokens=False)))
    return env


def test_a_right_answer_that_ends_in_its_stop_sequence_is_paid(tmp_path):
    def tagged(prompts, responses, metadata=None):
        return [float(bool(re.fullmatch(r"<answer>.*</answer>", r))) for r in responses]

    stops = ["</answer>"]
    env = TextGenerationEnv(TOKENIZER, ["?"], reward_fn=tagged, stop_sequences=stops)
    for more in ("", " and more"):
        said(env, f"<answer>7</answer>{more}")
        assert env.score([env])[0][0] == 1.0
        assert extract(env.response, "tag") == "7" and is_correct(env.response, "7")
    assert env.score([said(env, "7</answer>")])[0][0] == 0.0


@pytest.mark.parametrize("stop", ["}", "</answer>", "\n"])
def test_maths_answers_that_their_stop_sequence_closes(tmp_path, stop):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "3 + 4?", "answer": "#### 7"}\n')
    env = MathEnv(TOKENIZER, path=str(path), num_held_out=0, stop_sequences=[stop])
    text = {"}": "It is \\boxed{7} so", "</answer>": "<answer>7</answer> so", "\n": "7\nso"}[stop]
    (_, metrics), *_ = env.score([said(env, text)])
    assert metrics["correct"] == 1.0


PROGRAM = "def clamp(value, low, high):\n    return max(low, min(value, high))\n"


@pytest.mark.parametrize(
    ("stop", "text"),
    [("\n```", f"```python\n{PROGRAM}```\nUse it."), ("</answer>", f"<answer>\n{PROGRAM}</answer>"),
     ("</answer>", f"<answer>```python\n{PROGRAM}```</answer> Done.")],
)  # fmt: skip
def test_programs_that_their_stop_sequence_closes(stop, text):
    try:
        env = CodeGenerationEnv(TOKENIZER, stop_sequences=[stop])
    except ValueError:
        env = CodeGenerationEnv(TOKENIZER, stop_sequences=[stop], sandbox="unsafe")
    env.reset(list(env.problems).index("clamp"))
    env.respond(torch.tensor(TOKENIZER.encode(text, add_special_tokens=False)))
    assert env.score([env])[0][1]["correct"] == 1.0
