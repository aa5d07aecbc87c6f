"""Which prompts are trained on and held out: how many, from where, and those too long to answer."""

import json
from functools import partial

import datasets
import helpers
import lightning as L
import pytest
import torch

from datamodules import Environment, RolloutDataModule, TextGenerationEnv
from datamodules.environments.maths import MathEnv
from datamodules.rollouts.lengths import prompt_lengths
from datamodules.text.held_out import how_many
from datamodules.text.prompts import Prompt, encode_prompt
from datamodules.types import Observation, StepResult
from rlmodules import PPO
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "tokens"))


@pytest.fixture(scope="module")
def module():
    return PPO(helpers.config(max_new_tokens=6))


@pytest.fixture
def starts(module):
    """(train, held out) of a data module that was set up, and the module."""

    def starts(env=None, **options):
        data = RolloutDataModule(env or TextGenerationEnv, **options)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        data.trainer = L.Trainer(accelerator="cpu", **quiet)
        data.trainer.strategy._lightning_module = module
        data.setup()
        texts = [data.env.prompt(i).content for i in range(len(data.env))] if not env else None
        of = lambda some: [texts[i] if texts else i for i in some]  # noqa: E731
        return of(data.train_starts), of(data.eval_starts), data

    return starts


@pytest.fixture
def write(tmp_path):
    def write(rows, name="prompts.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


def saved(folder, **splits):
    sets = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(sets).save_to_disk(folder)
    return str(folder)


def rows(start, count):
    return [{"prompt": f"{start} {i}"} for i in range(count)]


# --------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("count", "wanted", "held"),
    [
        *[(1, None, 0), (2, None, 1), (9, None, 1), (10, None, 1), (100, None, 10)],
        *[(5000, None, 200), (100, 96, 96), (100, 50, 50), (100, 1, 1), (100, 0, 0), (1, 0, 0)],
    ],
)
def test_a_tenth_is_held_out_or_exactly_what_is_asked_for(count, wanted, held):
    assert how_many(count, wanted, 200) == held


@pytest.mark.parametrize("wanted", [100, 101])
def test_what_would_leave_nothing_to_train_on_is_refused(wanted):
    with pytest.raises(ValueError, match=rf"data\.eval_size={wanted} would hold out all 100"):
        how_many(100, wanted, 200)


def test_a_file_of_prompts_trains_on_nine_tenths_and_says_so(write, starts, capsys):
    train, held_out, _ = starts(path=write(rows("a", 100)))
    assert (len(train), len(held_out)) == (90, 10) and not {*train} & {*held_out}
    said = capsys.readouterr().out
    assert "90 starting states to train on, 10 held out (drawn from them)" in said
    train, held_out, _ = starts(path=write(rows("a", 100)), eval_size=96)
    assert (len(train), len(held_out)) == (4, 96)


class Hotel(Environment):
    """Few starting states, and none held out."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def __len__(self):
        return 6

    def reset(self, index=None):
        ids = torch.tensor([1, 2, 3])
        return Observation(ids, torch.ones_like(ids), "a room", {})

    def respond(self, tokens):
        return StepResult(0.0, True, None, {}, {})


def test_an_environment_of_few_states_keeps_most_of_them(starts, capsys):
    train, held_out, _ = starts(env=Hotel)
    assert (len(train), len(held_out)) == (5, 1)
    assert "5 starting states to train on, 1 held out (drawn from them)" in capsys.readouterr().out


def test_what_an_environment_holds_out_is_taken_whole(starts, capsys):
    train, held_out, _ = starts(env=lambda tokenizer: MathEnv(tokenizer, num_problems=20))
    assert (len(train), len(held_out)) == (20, 200)
    assert "200 held out (of the environment's own)" in capsys.readouterr().out


def test_given_prompts_for_evaluation_are_taken_as_far_as_they_go(write, starts):
    options = {"path": write(rows("a", 20)), "eval_path": write(rows("b", 5), "eval.jsonl")}
    assert [len(s) for s in starts(**options)[:2]] == [20, 5]
    assert [len(s) for s in starts(**options, eval_size=3)[:2]] == [20, 3]
    assert [len(s) for s in starts(**options, eval_size=0)[:2]] == [20, 0]


# ---------------------------------------------------------------------------- from where


def test_a_datasets_own_test_split_is_held_out_and_it_is_said(tmp_path, starts, capsys):
    path = saved(tmp_path / "set", train=rows("a", 20), test=rows("b", 5), dev=rows("c", 2))
    train, held_out, _ = starts(path=path)
    assert (len(train), held_out) == (20, [f"b {i}" for i in range(5)])
    assert f"5 held out (the split test of {path})" in capsys.readouterr().out
    assert starts(path=path, eval_split="dev")[1] == ["c 0", "c 1"]
    assert len(starts(path=path, split="dev", eval_size=1)[1]) == 1  # drawn
    only = saved(tmp_path / "only", train=rows("a", 20))
    assert [len(s) for s in starts(path=only)[:2]] == [18, 2]
    assert starts(path=only, eval_path=path)[1] == [f"b {i}" for i in range(5)]


GSM = [{"question": f"{i}+{i}?", "answer": f"So #### {2 * i}"} for i in range(40)]


def test_maths_problems_are_read_of_any_split(tmp_path):
    both = saved(tmp_path / "both", train=GSM[:30], test=GSM[30:])
    env = MathEnv(TOKENIZER, path=both)
    asked = [env.prompt(i).metadata["question"] for i in range(len(env))]
    assert {asked[i] for i in env.held_out} == {row["question"] for row in GSM[30:]}
    assert len(env) == 40
    only = saved(tmp_path / "only", test=GSM)
    with pytest.warns(UserWarning, match="its only split, test, is read"):
        assert len(MathEnv(TOKENIZER, path=only).held_out) == 4
    env = MathEnv(TOKENIZER, path=both, split="test", num_held_out=2)
    assert (len(env), len(env.held_out)) == (10, 2)
    for option in ({"split": "dev"}, {"name": "main"}):
        (name,) = option
        with pytest.raises(ValueError, match=rf"env\.{name}="):
            MathEnv(TOKENIZER, path=both, **option)
        with pytest.raises(ValueError, match=rf"env\.{name}=.*no env\.path is read"):
            MathEnv(TOKENIZER, **option)


def test_a_column_that_adds_to_a_problem_is_refused(write):
    rows = [GSM[0], GSM[1] | {"context": "", "level": 3}, GSM[2] | {"context": "Ann has 2."}]
    with pytest.raises(ValueError, match=r"jsonl, line 3: what the column 'context' says"):
        MathEnv(TOKENIZER, path=write(rows), num_held_out=0)


# ---------------------------------------------------------------------------- too long


def test_a_prompt_that_is_too_long_is_found_at_the_start(write, starts):
    path = write([*rows("a", 10), {"prompt": "long " * 200}, {"prompt": "b"}])
    with pytest.raises(ValueError, match=r"1 of 12 prompts (.|\n)*jsonl, line 11: 1000"):
        starts(path=path)
    held_out = {"path": write(rows("a", 10), "a.jsonl"), "eval_path": path}
    with pytest.raises(ValueError, match=r"1 of 22 prompts(.|\n)*prompts\.jsonl, line 11"):
        starts(**held_out)
    with pytest.raises(ValueError, match=r"data\.prompts, prompt 2: 1000 tokens"):
        starts(prompts=["a", "long " * 200], eval_size=0)


@pytest.mark.parametrize("option", ["data", "env"])
def test_prompts_that_are_too_long_are_left_out_where_that_is_wanted(write, starts, option):
    path = write([*rows("a", 10), {"prompt": "long " * 200}, {"prompt": "b"}])
    skip = {"on_error": "skip"} if option == "data" else {}
    make = lambda tokenizer, prompts: TextGenerationEnv(tokenizer, prompts, on_error="skip")  # noqa: E731
    with pytest.warns(UserWarning, match="1 of 12 prompts leave no room"):
        train, held_out, _ = starts(make if option == "env" else None, path=path, **skip)
    assert len(train) + len(held_out) == 11
    with (
        pytest.warns(UserWarning, match="rows are left out"),
        pytest.raises(ValueError, match="1 of 1 prompts leave no room"),
    ):
        starts(path=write([{"prompt": "long " * 200}, {"prompt": ""}], "b.jsonl"), on_error="skip")


CALLING = {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
LOST = [{"role": "user", "content": "a"}, {"role": "assistant", **CALLING}]
LOST += [{"role": "user", "content": "So?"}]


def test_a_prompt_that_the_template_does_not_take_is_found_at_the_start(write, starts):
    path = write([*rows("a", 10), {"prompt": LOST}, {"prompt": "b"}])
    with pytest.raises(ValueError, match=r"1 prompts(.|\n)*line 11: .*drops the call of 'f'"):
        starts(path=path)
    with pytest.warns(UserWarning, match=r"line 11(.|\n)*left out"):
        train, held_out, _ = starts(path=path, on_error="skip")
    assert len(train) + len(held_out) == 11
    with pytest.raises(ValueError, match="drops the call"):
        starts(prompts=[LOST], eval_size=0, on_error="skip")


def test_room_is_what_the_prompt_and_a_whole_response_need(starts, write):
    path = write([{"prompt": "x" * 20}])
    make = lambda room: partial(TextGenerationEnv, max_length=room)  # noqa: E731
    needed = len(encode_prompt(TOKENIZER, Prompt("x" * 20))) + 6
    assert starts(make(needed), path=path)[0] == [0]
    with pytest.raises(ValueError, match=rf"within env\.max_length={needed - 1}"):
        starts(make(needed - 1), path=path)


def test_lengths_of_many_prompts_are_kept(monkeypatch):
    prompts = [Prompt("a" * i) for i in range(1, 40)]
    env = TextGenerationEnv(TOKENIZER, prompts)
    expected = [len(encode_prompt(TOKENIZER, prompt)) for prompt in prompts]
    monkeypatch.setattr("datamodules.rollouts.lengths.CACHED_PROMPTS", 10)
    assert prompt_lengths(env, range(39)) == expected
    monkeypatch.setattr("datamodules.rollouts.lengths.encode_prompt", None)
    assert prompt_lengths(env, range(39)) == expected
    with pytest.raises(TypeError):
        prompt_lengths(env, range(38))


# ---------------------------------------------------------------------------- columns


def test_columns_of_the_file_are_named_and_kept_for_the_reward(write, starts, capsys):
    path = write([{"frage": "Hi", "antwort": 4}, {"frage": "Ho", "antwort": 5}])
    _, _, data = starts(path=path, columns={"prompt": "frage"}, eval_size=0)
    assert data.env.prompt(1) == Prompt("Ho", {"antwort": 5})
    assert f"{path}: columns for the reward alone: antwort" in capsys.readouterr().out
    assert data.readings["data.path"].columns.used == ("frage",)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"columns": {"prompt": "q"}}, "data.columns=.*has no use"),
        ({"name": "main"}, "data.name='main' has no use"),
        ({"eval_split": "test"}, "data.eval_split='test' has no use"),
        ({"on_error": "never"}, "data.on_error='never' must be raise or skip"),
        ({"path": "a.jsonl", "eval_split": "test"}, "data.eval_split='test' names a part"),
        ({"path": "a.jsonl", "columns": {"promt": "q"}}, "nothing is read as 'promt'"),
    ],
)
def test_options_that_nothing_would_read_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RolloutDataModule(TextGenerationEnv, **options)
