"""The code environment: what an answer is, what it earns, and the files that problems come from."""

import json
import threading
from pathlib import Path

import pytest
import torch

from datamodules.environments.code import (
    AFTER_A_BLOCK,
    AFTER_A_FUNCTION,
    OWN_PROBLEMS,
    WEIGHTS,
    CodeGenerationEnv,
    Judgement,
    create_code_generation_env,
    style,
)
from datamodules.environments.code_problems import load_problems
from datamodules.guard import run_all
from datamodules.sandbox import Sandbox
from datamodules.text.tables import read_rows
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PLAIN = tiny_tokenizer()
PLAIN.chat_template = None
EOS = TOKENIZER.eos_token_id
OWN = {row["name"]: row for _, row in read_rows(OWN_PROBLEMS)}
GOOD = OWN["clamp"]["solution"]


@pytest.fixture(scope="module")
def backend():
    """Where nothing isolates, the scoring itself is still tested, with this file's own answers."""
    try:
        return Sandbox("auto").backend.name
    except ValueError:
        return "unsafe"


@pytest.fixture(scope="module")
def env(backend):
    return CodeGenerationEnv(TOKENIZER, sandbox=backend)


def ids(text: str) -> torch.Tensor:
    return torch.tensor([*TOKENIZER(text)["input_ids"], EOS])


def scored(env, name, response):
    """Reward and metrics of one whole episode."""
    episode = env.fork()
    episode.reset(list(env.problems).index(name))
    episode.respond(ids(response))
    return env.score([episode])[0]


def jsonl(path: Path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# ---------------------------------------------------------------- the project's problems


def test_every_solution_passes_and_every_wrong_one_fails_some_hidden_test(env):
    def judge(row):
        fenced = "So:\n```python\n{}```\nDone."
        right = env.judge(row["name"], fenced.format(row["solution"]))
        wrong = env.judge(row["name"], fenced.format(row["wrong_solution"]))
        return row["name"], right, wrong.tests

    results = run_all([lambda row=row: judge(row) for row in OWN.values()])
    assert len(results) == len(OWN) >= 24
    for name, right, wrong in results:
        assert right == Judgement(syntax=1, style=1, tests=1), name
        assert 0 < wrong < 1, name


def test_no_hidden_test_is_shown(env):
    for index, problem in enumerate(env.problems.values()):
        observation = env.fork().reset(index)
        assert problem.visible and all(test in observation.prompt for test in problem.visible)
        assert not any(test in observation.prompt for test in problem.tests)
        assert not any(test in str(observation.metadata) for test in problem.tests)


def test_the_visible_tests_are_true_of_the_solution(env):
    for problem in list(env.problems.values())[::4]:
        report = env.sandbox.run(
            OWN[problem.name]["solution"], problem.visible, calls=problem.calls
        )
        assert report.passed == 1, problem.name


# ------------------------------------------------------------------------------ rewards

SCORES = {
    "right": (GOOD, 1.0, {"syntax": 1, "style": 1, "tests": 1}),
    "partly": (OWN["clamp"]["wrong_solution"], 0.1 + 0.1 + 0.8 * 0.6,
               {"syntax": 1, "style": 1, "tests": 0.6}),
    "bad style": (GOOD.replace("value", "l"), 0.1 + 0.05 + 0.8,
                  {"syntax": 1, "style": 0.5, "tests": 1}),
    "wrong": ("def clamp(a, b, c):\n    return 'none'", 0.1, {"syntax": 1}),
    "empty": ("", 0, {}),
    "blank": (" \n\t\n", 0, {}),
    "remarks": ("# clamp\n", 0, {}),
    "prose": ("To clamp a value, compare it with both bounds.", 0, {}),
    "cut off": (GOOD[:-3], 0, {}),
    "another name": (GOOD.replace("clamp", "clip"), 0, {}),
    "raises": ("def clamp(a, b, c):\n    raise ValueError", 0, {}),
    "exits": ("import sys\nsys.exit(0)", 0, {}),
    "reads files": ("open('/etc/passwd/x').read()\n" + GOOD, 0, {}),
    "null bytes": ("def clamp(a, b, c):\n    return '\0'", 0, {}),
    "deep": ("(" * 5000 + ")" * 5000, 0, {}),
    "deeper": ("x = " + "-" * 20_000 + "1", 0, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", SCORES)
def test_the_reward_of_an_answer(env, case):
    answer, reward, parts = SCORES[case]
    env = env.fork()
    env.max_length = 100_000
    got, metrics = scored(env, "clamp", f"```python\n{answer}\n```" if answer else "")
    assert got == pytest.approx(reward)
    assert {k: metrics[f"reward_{k}"] for k in WEIGHTS} == {k: parts.get(k, 0) for k in WEIGHTS}
    assert metrics["correct"] == float(parts.get("tests") == 1)
    assert metrics["stopped"] == 0


def test_an_endless_answer_earns_nothing_and_is_counted(backend):
    env = CodeGenerationEnv(TOKENIZER, sandbox=backend, time_limit_s=1)
    reward, metrics = scored(env, "clamp", "```python\nwhile True:\n    pass\n```")
    assert reward == 0 and metrics["stopped"] == 1 and metrics["correct"] == 0


def test_the_weights_are_the_users(backend):
    weights = {"syntax": 0.0, "style": 0.5, "tests": 2.0}
    env = CodeGenerationEnv(TOKENIZER, sandbox=backend, reward_weights=weights)
    assert scored(env, "clamp", GOOD)[0] == 2.5
    with pytest.raises(ValueError, match=r"differ in \['speed'\]"):
        CodeGenerationEnv(TOKENIZER, sandbox=backend, reward_weights=WEIGHTS | {"speed": 1.0})


def test_a_batch_is_scored_in_order_and_the_same_answer_is_run_once(backend, monkeypatch):
    env = CodeGenerationEnv(TOKENIZER, sandbox=backend)
    ran, lock = [], threading.Lock()

    def counting(program, *args, **kwargs):
        with lock:
            ran.append(program)
        return Sandbox.run(env.sandbox, program, *args, **kwargs)

    monkeypatch.setattr(env.sandbox, "run", counting)
    episodes = []
    for name, answer in [("clamp", GOOD), ("digit_sum", GOOD), ("clamp", "")]:
        episodes.append(env.fork())
        episodes[-1].reset(list(env.problems).index(name))
        episodes[-1].respond(ids(answer))
    first = env.score(episodes)
    assert [reward for reward, _ in first] == [1.0, 0.0, 0.0]
    assert env.score(episodes) == first and env.score(episodes[::-1]) == first[::-1]
    assert ran.count(GOOD) == 2  # once a problem


def test_the_seeds_name_and_a_whole_step(backend):
    env = create_code_generation_env(TOKENIZER, sandbox=backend)
    env.reset(list(env.problems).index("clamp"))
    result = env.step(ids(f"```python\n{GOOD}```"))
    assert result.done and result.reward == 1.0
    assert result.metrics["reward_syntax"] == result.metrics["reward_style"] == 1.0


def test_components_can_be_asked_for_without_an_episode(env):
    reward, parts = env.compute_multi_objective_reward("", GOOD, GOOD, {"name": "clamp"})
    assert reward == pytest.approx(1) and parts == {"syntax": 1.0, "style": 1.0, "tests": 1.0}
    with pytest.raises(ValueError, match="no problem 'clump'"):
        env.judge("clump", GOOD)


@pytest.mark.parametrize(
    ("program", "share"),
    [
        ("x = 1", 1.0),
        ("import os\nx = 1", 0.5),
        ("# a remark\n\nimport os\nx = 1", 0.5),
        ("import os, sys\n", 0.0),
        ("", 0.0),
    ],
)
def test_style_is_the_share_of_lines_without_a_finding(program, share):
    assert style(program) == share


def test_style_does_not_blame_an_answer_for_the_lines_it_was_given():
    assert style("import os\nx = 1\nimport sys", given_lines=1) == 0.5


# -------------------------------------------------------------------------- other files

HEAD = (
    "import math\n\ndef helper(x):\n    return x + 1\n\n"
    'def area(r: float) -> float:\n    """The area of a circle."""\n'
)
HUMAN_EVAL = {
    "task_id": "Own/0",
    "prompt": HEAD,
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    assert True, 'filler'\n"
    "    import random\n    for _ in range(3):\n        r = random.random()\n"
    "        assert abs(candidate(r) - 3.14159265 * r * r) < 1e-6\n"
    "    assert candidate(0) == 0\n    assert helper(int(area(0))) == 1\n",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to double a number.",
    "code": "def double(x):\r\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert math.isclose(double(0.5), 1.0)"],
    "test_setup_code": "",
}


@pytest.fixture
def human_eval(tmp_path, backend):
    path = jsonl(tmp_path / "he.jsonl", HUMAN_EVAL)
    return lambda tokenizer: CodeGenerationEnv(tokenizer, path, sandbox=backend)


BODY = "    return math.pi * r * r\n"
COMPLETIONS = {
    "body": (BODY, 1.0),
    "whole function": (f"```python\ndef area(r):\n{BODY}```", 1.0),
    "with the head": (f"```python\n{HEAD}{BODY}```", 1.0),
    "wrong": ("    return r\n", 2 / 3),
    "replaces a helper": (f"def helper(x):\n    return 1\ndef area(r):\n{BODY}", 1.0),
    "nothing": ("", 0.0),
    "remarks": ("    # to do\n", 0.0),
    "wrong type": ("    return 'x'\n", 0.0),
}


@pytest.mark.parametrize("case", COMPLETIONS)
def test_a_function_is_completed_or_written_out(human_eval, case):
    response, tests = COMPLETIONS[case]
    _, metrics = scored(human_eval(TOKENIZER), "Own/0", response)
    assert metrics["reward_tests"] == pytest.approx(tests)
    if tests == 1:
        assert metrics["reward_style"] == 1.0
    if case in ("nothing", "remarks"):
        assert metrics["reward_syntax"] == 0


def test_what_follows_a_completed_function_does_not_count(human_eval):
    env = human_eval(PLAIN)
    for more in ("\ndef other(:", "\n# Now test it", "\nprint(area(1))", "\nif x:"):
        assert scored(env, "Own/0", BODY + more)[1]["correct"] == 1
    assert scored(env, "Own/0", BODY + "\n)")[1]["correct"] == 0


def test_a_data_set_with_a_test_split_alone_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([HUMAN_EVAL, HUMAN_EVAL | {"task_id": "Own/1"}])
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "he")
    with pytest.warns(UserWarning, match="its only split, test, is read"):
        assert len(load_problems(str(tmp_path / "he"))) == 2
    assert len(load_problems(str(tmp_path / "he"), split="test")) == 2
    with pytest.raises(ValueError, match=r"env\.split='train'.*has the splits test"):
        load_problems(str(tmp_path / "he"), split="train")


def test_a_check_of_human_evals_becomes_one_test_an_assertion(tmp_path):
    [problem] = load_problems(jsonl(tmp_path / "he.jsonl", HUMAN_EVAL))
    assert len(problem.tests) == 3 and problem.completes == "area"
    assert problem.calls == {"candidate": "area", "area": "area"}
    assert "import random" in problem.tests[0] and "assert True" in problem.tests[0]


def test_rows_of_mbpps_kind(tmp_path, backend):
    env = CodeGenerationEnv(TOKENIZER, jsonl(tmp_path / "m.jsonl", MBPP), sandbox=backend)
    prompt = env.reset(0).prompt
    assert MBPP["text"] in prompt and "double(2) == 4" in prompt and "isclose" not in prompt
    assert env.problems["MBPP/7"].calls == {"double": "double"}
    reward, metrics = scored(env, "MBPP/7", f"```python\n{MBPP['code']}\n```")
    assert metrics["correct"] == 1 and reward > 0.9
    assert scored(env, "MBPP/7", "def double(x):\n    return 4")[1]["reward_tests"] == 0.5


def test_plain_prompts_go_on_as_code_and_stop_where_it_ends(human_eval, backend):
    completing = human_eval(PLAIN)
    assert completing.reset(0).prompt == HEAD
    assert completing.stop_sequences == AFTER_A_FUNCTION
    own = CodeGenerationEnv(PLAIN, sandbox=backend)
    assert own.reset(0).prompt.endswith("one ```python block.\n\n```python\n")
    assert own.stop_sequences == AFTER_A_BLOCK
    assert scored(own, "clamp", GOOD + "```\nThis function ...")[0] == 1.0
    assert CodeGenerationEnv(TOKENIZER, sandbox=backend).stop_sequences == ()


def test_chat_prompts_ask_for_a_whole_function(human_eval):
    prompt = human_eval(TOKENIZER).reset(0).prompt
    assert f"```python\n{HEAD}```" in prompt and prompt.endswith("[assistant]")


BAD_ROWS = {
    "unknown": ({"question": "?"}, r"line 2: the columns \['question'\]"),
    "no row": (7, r"line 2: the columns \[\]"),
    "no test calls it": (MBPP | {"test_list": ["assert True"]}, "line 2: .*tests call nothing"),
    "no assertion": (MBPP | {"test_list": ["double(2) == 4"]}, "line 2: no test .* asserts"),
    "no test": (MBPP | {"test_list": []}, "line 2: .*its test_list is empty"),
    "no Python": (MBPP | {"test_list": ["assert double(2 =="]}, "line 2: .*SyntaxError"),
    "no check": (
        HUMAN_EVAL | {"test": "assert area(0) == 0"},
        r"line 2: .*one function check\(candidate\)",
    ),
    "no head": (HUMAN_EVAL | {"prompt": "def area("}, "line 2: .*SyntaxError"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_by_file_and_line(tmp_path, case):
    row, message = BAD_ROWS[case]
    with pytest.raises(ValueError, match=rf"rows\.jsonl, {message}"):
        load_problems(jsonl(tmp_path / "rows.jsonl", HUMAN_EVAL, row))


def test_problems_are_held_out_by_share_or_by_file(tmp_path, backend):
    env = CodeGenerationEnv(TOKENIZER, sandbox=backend)
    assert len(env.held_out) == round(len(env) / 4)
    assert env.held_out == CodeGenerationEnv(PLAIN, sandbox=backend).held_out
    assert CodeGenerationEnv(TOKENIZER, heldout=0, sandbox=backend).held_out is None
    path, own = jsonl(tmp_path / "he.jsonl", HUMAN_EVAL), jsonl(tmp_path / "m.jsonl", MBPP)
    env = CodeGenerationEnv(TOKENIZER, own, path, sandbox=backend)
    assert list(env.held_out) == [1] and list(env.problems) == ["MBPP/7", "Own/0"]
    with pytest.raises(ValueError, match=r"two problems named 'Own/0'.*env\.eval_path"):
        CodeGenerationEnv(TOKENIZER, path, path, sandbox=backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heldout": 1.0}, r"env\.heldout=1\.0"),
        ({"heldout": 0.99}, r"env\.heldout=0\.99 of the \d+ problems .* leaves none"),
        ({"timeout_s": 5.0}, r"env\.timeout_s=5\.0 must be above env\.time_limit_s=5\.0"),
        ({"sandbox": "jail"}, r"env\.sandbox='jail'"),
        ({"time_limit_s": -1}, r"env\.time_limit_s=-1"),
        ({"memory_mb": 1}, r"env\.memory_mb=1"),
        ({"path": "package:openings_train.txt"}, r"openings_train\.txt, line 1: the columns"),
    ],
)
def test_an_impossible_option_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        CodeGenerationEnv(**{"tokenizer": TOKENIZER, "sandbox": "unsafe"} | options)
