"""A reason is told once, with the first row that it is true of, whatever reads the rows."""

import json
import warnings
from types import SimpleNamespace

import pytest

from datamodules.environments.code_checks import judgeable
from datamodules.environments.text import TextGenerationEnv
from datamodules.preferences.datamodule import PreferenceDataModule
from datamodules.rewards import answers
from datamodules.rollouts.lengths import without_overlong
from datamodules.text.problems import below, gathered
from datamodules.text.prompt_files import load_prompts
from datamodules.text.prompts import Prompt
from rlmodules.models.embedded import tiny_tokenizer

COUNT = 30


@pytest.mark.parametrize(
    ("problems", "lines"),
    [
        ([], []),
        (["a, line 1: bad"], ["a, line 1: bad"]),
        (["a, line 1: bad", "a, line 7: bad"], ["a, line 1: bad (and 1 more)"]),
        (["1: x", "2: y", "3: x", "4: x"], ["1: x (and 2 more)", "2: y"]),
        (["1: x: 1", "2: x: 2"], ["1: x: 1", "2: x: 2"]),  # two reasons
        (["no place", "no place"], ["no place (and 1 more)"]),
        (["1: a", "2: b", "3: c", "4: d", "5: d"], ["1: a", "2: b", "... and 3 more"]),
    ],
)
def test_a_reason_is_a_line(problems, lines):
    assert gathered(problems, 2) == lines


def test_lines_stand_below_what_announces_them():
    assert below(["1: x", "2: x"]) == "\n  1: x (and 1 more)" and below([]) == ""


def preferences(on_error, path, row, **options):
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(COUNT)) + json.dumps(GOOD))
    data = PreferenceDataModule(str(path), on_error=on_error, eval_size=0, **options)
    module = SimpleNamespace(
        tokenizer=tiny_tokenizer(), learns_from="preferences", closes_texts=True
    )
    data.trainer = SimpleNamespace(
        lightning_module=module, is_global_zero=True, world_size=1, global_rank=0, current_epoch=0
    )
    data.setup("fit")


GOOD = {"prompt": "p", "response": "r", "chosen": "c", "rejected": "d", "a": 1, "b": 2}


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"prompt": "p", "response": "r", "a": 1}, {"objectives": ["a", "b"]}, "no column 'b'"),
        (GOOD | {"a": None, "b": None}, {"objectives": ["a", "b"]}, "no objective has a score"),
        ({"prompt": "p", "chosen": "c"}, {}, "no column 'rejected'"),
        (GOOD | {"rejected": "c"}, {}, "nothing to prefer"),
    ],
)
def test_rows_of_preferences(tmp_path, row, options, reason):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="30 of 31 rows cannot be learned from") as refused:
        preferences("raise", path, row, **options)
    with pytest.warns(UserWarning, match="30 of 31 rows cannot be learned from") as warned:
        preferences("skip", path, row, **options)
    assert len(warned) == 1
    for message in (str(refused.value), str(warned[0].message)):
        assert message.count(reason) == 1 and message.count("rows.jsonl, line") == 1
        assert "rows.jsonl, line 1:" in message and "(and 29 more)" in message


def test_rows_without_a_prompt(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n' + '{"prompt": ""}\n' * COUNT)
    with pytest.warns(UserWarning) as warned:
        load_prompts(str(path), on_error="skip")
    (message,) = [str(warning.message) for warning in warned]
    assert message.startswith("30 rows are left out:\n") and message.count("\n") == 1
    assert "line 2: " in message and message.endswith("(and 29 more)")
    path.write_text('{"prompt": ""}\n' * COUNT)
    with pytest.raises(ValueError, match=r"holds no prompts\n.*line 1: .*\(and 29 more\)$"):
        load_prompts(str(path), on_error="skip")


def test_prompts_that_are_too_long():
    env = TextGenerationEnv(tiny_tokenizer(), [Prompt("long " * 200)] * COUNT + [Prompt("a")])
    policy = SimpleNamespace(fits=lambda observation, env: len(observation.input_ids) < 100)
    with pytest.warns(UserWarning, match=r"30 of 31 prompts leave no room") as warned:
        left = without_overlong(policy, env, range(31), [], places=[], skip=True)
    assert left == ([30], [])
    assert str(warned[0].message).count("tokens") == 2  # of algo.max_new_tokens too
    assert "prompt 0: 1000 tokens (and 29 more)" in str(warned[0].message)


def test_problems_of_code(monkeypatch):
    from datamodules.environments import code_checks

    monkeypatch.setattr(code_checks, "reasons_against", lambda problems, sandbox: ["no"] * 30)
    problems = [SimpleNamespace(where=f"p.jsonl, line {i}") for i in range(1, COUNT + 1)]
    message = r"^30 of 30 problems left out: p\.jsonl, line 1: no \(and 29 more\)$"
    with pytest.raises(ValueError, match=message):
        judgeable(problems, None)


def test_answers_that_cannot_be_judged(monkeypatch):
    """Once an expected answer, however often it is given; and of many the first few."""
    monkeypatch.setattr(answers, "_told", set())
    monkeypatch.setattr(answers.formulas, "formulas_equal", lambda gold, said, timeout_s: None)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for i in range(COUNT):
            for said in ("x+1", "x+2"):
                assert not answers.is_correct(f"\\boxed{{{said}}}", f"x+\\wobble{{{i}")
    messages = [str(warning.message) for warning in warned]
    assert len(messages) == answers.SHOWN + 1
    assert [m for m in messages if "further such answers are not shown" in m] == messages[-1:]
