"""Prompts -> preference pairs: which answers become a pair, and what the file is good for."""

import json
from functools import partial

import lightning as L
import pytest
import torch
from helpers import config

from datamodules import (
    Environment,
    Observation,
    PreferenceDataModule,
    RolloutDataModule,
    StepResult,
    TextGenerationEnv,
)
from datamodules.environments.preference import PreferenceComparisonEnv
from datamodules.rewards.functions import RewardError
from datamodules.rollouts.collector import Answer, PreferenceCollector, choose_pairs
from datamodules.rollouts.episodes import EpisodeError
from datamodules.rollouts.pairs_file import PairsFile
from rlmodules import DPO, PPO, DPOConfig
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.tasks.collect_preferences import HELD_OUT as HELD_OUT_KEYS
from rlmodules.tasks.collect_preferences import PROMPTS as PROMPT_KEYS
from rlmodules.tasks.collect_preferences import collect_preferences

PROMPTS = [f"Prompt {i}" for i in range(6)]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
SETTINGS = {
    "model": {"name": "random:tiny"},
    "env": {"_target_": "my.Env"},
    "data": dict.fromkeys((*PROMPT_KEYS, *HELD_OUT_KEYS)),
}

USUAL = {"num_generations": 4, "truncated": "keep"}  # the tiny model hardly ever ends by itself


def printable(prompts, responses, metadata=None):
    """A reward that differs: the share of printable ASCII."""
    return [sum(" " <= c <= "~" for c in said) / (len(said) or 1) for said in responses]


def collect(out, reward=printable, env=None, prompts=PROMPTS, settings=SETTINGS, **options):
    """Pairs by the tiny model, 8 tokens an answer; returns the summary and the rows."""
    seed, changes = options.pop("seed", 0), options.pop("algo", {})
    data = RolloutDataModule(
        env or partial(TextGenerationEnv, reward_fn=reward),
        prompts=None if isinstance(env, Environment) else prompts,
        eval_size=options.pop("eval_size", 0),
        seed=seed,
    )
    module = PPO(config(max_new_tokens=8, temperature=1.0, top_p=1.0, **changes))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    summary = collect_preferences(
        lambda: module, data, trainer, settings, out=str(out), **USUAL | options
    )
    return summary, [json.loads(line) for line in out.read_text().splitlines()]


# ------------------------------------------------------------------- answers -> pairs

A, B, C, D = (Answer(text, score, "eos") for text, score in zip("abcd", (1, 0, 3, 2), strict=True))
CUT = Answer("cut", 9.0, "length")


@pytest.mark.parametrize(
    ("answers", "options", "expected"),
    [
        ((A, B, C, D), {}, [(C, B)]),
        ((A, B, C, D), {"max_pairs": 9}, [(C, B), (D, A)]),
        ((A, B, C, D), {"max_pairs": 9, "min_gap": 1}, [(C, B)]),
        ((A, B, C, D), {"min_gap": 3}, []),
        ((A, Answer("b", 1, "eos")), {}, []),
        ((A,), {}, []),
        ((), {}, []),
        ((A, CUT), {}, []),
        ((A, D, CUT), {}, [(D, A)]),
        ((A, Answer("cut", -1, "length")), {}, [(A, Answer("cut", -1, "length"))]),
        ((A, CUT), {"truncated": "keep"}, [(CUT, A)]),
        ((A, Answer("cut", -1, "length")), {"truncated": "drop"}, []),
        ((A, D, Answer("cut", -1, "length")), {"truncated": "drop"}, [(D, A)]),
        ((A, Answer(" \n", -1, "eos"), Answer("", -2, "eos")), {}, []),
        ((A, Answer(" a ", 0, "eos")), {}, []),
        ((Answer("a", 0, "length"), A, B), {}, [(A, B)]),
        ((B, Answer("x", 0, "length"), Answer("y", 0, "eos"), A), {}, [(A, B)]),
        ((A, Answer("x", 1, "stop"), B), {}, [(A, B)]),
    ],
)
def test_which_answers_become_pairs(answers, options, expected):
    settings = {"max_pairs": 1, "min_gap": 0.0, "truncated": "rejected"} | options
    assert choose_pairs(answers, **settings) == expected


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_generations": 1}, r"task\.num_generations=1"),
        ({"num_prompts": 0}, r"task\.num_prompts=0"),
        ({"batch_size": 0}, r"task\.batch_size=0"),
        ({"max_pairs": 0}, r"task\.max_pairs=0"),
        ({"min_gap": -1.0}, r"task\.min_gap=-1"),
        ({"min_gap": float("nan")}, r"task\.min_gap=nan"),
        ({"truncated": "maybe"}, r"task\.truncated='maybe': use one of rejected, drop, keep"),
    ],
)
def test_an_impossible_option_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        PreferenceCollector(**options)


# ------------------------------------------------------------------------------ the file


def read_by_dpo(path, tokenizer):
    """The pairs as ``algo=dpo`` has them: (prompt, chosen, rejected) as text, ends included."""
    data = PreferenceDataModule(str(path), eval_size=0)
    data.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module = DPO(DPOConfig(model_name="random:tiny"))
    module.tokenizer = tokenizer
    data.trainer.strategy.connect(module)
    data.setup()
    return [
        tuple(
            tokenizer.decode(ids)
            for ids in (
                e.sequences[0][: e.prompt_length],
                e.sequences[0][e.prompt_length :],
                e.sequences[1][e.prompt_length :],
            )
        )
        for e in data.train_dataset.examples
    ]


def test_text_prompts_give_pairs_that_dpo_reads(tmp_path):
    out = tmp_path / "new" / "pairs.jsonl"
    summary, rows = collect(out)
    assert summary.prompts == 6 and summary.pairs == len(rows) >= 4
    for row in rows:
        assert row["prompt"] == PROMPTS[row["index"]]
        scores = printable(None, [row["chosen"], row["rejected"]])
        assert scores == [row["score_chosen"], row["score_rejected"]]
        assert scores[0] > scores[1]
        assert {row["finish_chosen"], row["finish_rejected"]} <= {"eos", "length"}
    wanted = [(r["prompt"], r["chosen"] + "<eos>", r["rejected"] + "<eos>") for r in rows]
    assert read_by_dpo(out, tiny_tokenizer()) == wanted
    assert rows[0]["source"] == {
        "model": "random:tiny",
        "env": "my.Env",
        "digest_of_env_model_data": rows[0]["source"]["digest_of_env_model_data"],
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_generations": 4,
        "max_pairs": 1,
        "min_gap": 0.0,
        "truncated": "keep",
        "seed": 0,
    }


def test_conversations_give_messages_that_dpo_reads(tmp_path):
    out = tmp_path / "pairs.jsonl"
    _, rows = collect(out, prompts=CHATS)
    assert len(rows) >= 4
    for row in rows:
        assert row["prompt"] == CHATS[row["index"]]
        for side in ("chosen", "rejected"):
            [message] = row[side]
            assert message["role"] == "assistant" and message["content"].strip()
    wanted = [
        (
            f"<bos>[user]{PROMPTS[r['index']]}<eos>[assistant]",
            r["chosen"][0]["content"] + "<eos>",
            r["rejected"][0]["content"] + "<eos>",
        )
        for r in rows
    ]
    assert read_by_dpo(out, tiny_tokenizer()) == wanted


def test_what_is_written_is_what_was_rewarded_up_to_a_stop_string(tmp_path):
    stops = [chr(c) for c in range(ord(" "), ord("P"))]
    seen = []

    def reward(prompts, responses, metadata=None):
        seen.extend(responses)
        return [float(len(said)) for said in responses]

    env = partial(TextGenerationEnv, reward_fn=reward, stop_sequences=stops)
    _, rows = collect(tmp_path / "pairs.jsonl", env=env, num_generations=8)
    texts = [row[side] for row in rows for side in ("chosen", "rejected")]
    assert texts and set(texts) <= set(seen)
    assert not any(stop in text for stop in stops for text in texts)


def test_the_same_settings_write_the_same_file_in_batches_of_any_size(tmp_path):
    whole, parts, other = (tmp_path / f"{name}.jsonl" for name in "abc")
    collect(whole, batch_size=64)
    collect(parts, batch_size=1)
    collect(other, seed=1)
    assert whole.read_bytes() == parts.read_bytes() != other.read_bytes()


def test_fewer_prompts_are_the_first_of_more_and_a_file_can_grow(tmp_path):
    whole, growing = tmp_path / "whole.jsonl", tmp_path / "growing.jsonl"
    everything, _ = collect(whole)
    few, _ = collect(growing, num_prompts=2)
    assert few.prompts == 2 and whole.read_bytes().startswith(growing.read_bytes())
    all_of_them, _ = collect(growing)
    assert growing.read_bytes() == whole.read_bytes()
    parts = ("prompts", "pairs", "without_pair", "mean_chosen", "mean_rejected")
    assert all(getattr(all_of_them, part) == getattr(everything, part) for part in parts)
    assert all_of_them.sampled <= 16 < everything.sampled == 24
    with pytest.raises(ValueError, match=r"task\.num_prompts=7, but the environment has 6"):
        collect(tmp_path / "more.jsonl", num_prompts=7)


def test_an_interrupted_collection_goes_on_as_if_nothing_had_been(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    collect(whole)
    calls = []

    def interrupted(prompts, responses, metadata=None):
        calls.append(prompts)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return printable(prompts, responses)

    with pytest.raises(RewardError, match="KeyboardInterrupt"):
        collect(cut, reward=interrupted, batch_size=4)
    begun = cut.read_bytes()
    assert 0 < len(begun) < len(whole.read_bytes()) and whole.read_bytes().startswith(begun)
    collect(cut)
    assert cut.read_bytes() == whole.read_bytes()


def test_a_source_may_hold_what_json_writes_otherwise(tmp_path):
    for _ in range(2):
        PairsFile(tmp_path / "a.jsonl", {"stops": ("a",)}).append(
            [{"index": 0, "score_chosen": 1.0, "score_rejected": 0.0}]
        )
    assert len(PairsFile(tmp_path / "a.jsonl", {"stops": ["a"]}).rows) == 2


def test_half_a_line_is_collected_again_with_the_pairs_of_its_prompt(tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    options = {"max_pairs": 3, "num_generations": 8}
    _, rows = collect(whole, **options)
    indices = [row["index"] for row in rows]
    third = next(i for i in range(2, len(rows)) if len(set(indices[i - 2 : i + 1])) == 1)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut.write_bytes(b"".join(lines[:third]) + lines[third][:30])
    collect(cut, **options)
    assert cut.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "content", ['{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "text\n", "[1]\n", "{oops"]
)
def test_somebody_elses_file_is_left_as_it_is(content, tmp_path):
    out = tmp_path / "pairs.jsonl"
    out.write_text(content)
    with pytest.raises(ValueError, match=r"pairs\.jsonl.* holds something else"):
        collect(out)
    assert out.read_text() == content


def test_pairs_of_other_settings_are_not_mixed(tmp_path):
    out = tmp_path / "pairs.jsonl"
    collect(out)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"line 1.*min_gap=0\.0, now 0\.5.*give another file"):
        collect(out, min_gap=0.5)
    with pytest.raises(ValueError, match="digest_of_env_model_data"):
        collect(out, settings=SETTINGS | {"env": {"_target_": "my.Env", "max_length": 9}})
    with pytest.raises(ValueError, match="none of these 6, or another one by now"):
        collect(out, prompts=[prompt + "!" for prompt in PROMPTS])
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match=r"out='pairs\.csv'"):
        PairsFile("pairs.csv", {})


# ------------------------------------------------------------------------- environments


def test_held_out_prompts_are_not_collected_from(tmp_path):
    env = TextGenerationEnv(tiny_tokenizer(), PROMPTS, reward_fn=printable)
    env.held_out = [0, 1, 2, 3]
    summary, rows = collect(tmp_path / "pairs.jsonl", env=env)
    assert summary.prompts == 2 and {row["index"] for row in rows} == {4, 5}


def test_answers_that_are_equally_good_give_no_pair_and_are_counted(tmp_path):
    def reward(prompts, responses, metadata=None):
        return [
            r if p == "Prompt 3" else 0.25
            for p, r in zip(prompts, printable(None, responses), strict=True)
        ]

    summary, rows = collect(tmp_path / "pairs.jsonl", reward=reward, num_generations=8)
    assert [row["index"] for row in rows] == [3]
    assert (summary.pairs, summary.without_pair) == (1, 5)
    assert summary.mean_chosen == rows[0]["score_chosen"]
    text = str(summary)
    assert (
        "1 pairs from 6 prompts" in text
        and "5 (83.3%)" in text
        and "sampled in this run: 48" in text
    )


def test_a_preference_model_decides_where_the_environment_compares(tmp_path):
    def compare(prompt, a, b):
        return 1.0 if len(a) > len(b) else 0.5 if len(a) == len(b) else 0.0

    env = partial(PreferenceComparisonEnv, preference_model=compare)
    _, rows = collect(tmp_path / "pairs.jsonl", env=env)
    assert rows
    for row in rows:
        assert len(row["chosen"]) > len(row["rejected"])
        assert 0 <= row["score_rejected"] < row["score_chosen"] <= 1


class Breaks(TextGenerationEnv):
    """It fails at its second prompt."""

    def score(self, episodes):
        for episode in episodes:
            if episode._prompt.content == PROMPTS[1]:
                raise OSError("no such judge")
        return super().score(episodes)


def test_an_environments_errors_stop_the_run_or_cost_their_answers(tmp_path):
    env = partial(Breaks, reward_fn=printable)
    with pytest.raises(EpisodeError, match="no such judge"):
        collect(tmp_path / "stopped.jsonl", env=env)
    out = tmp_path / "pairs.jsonl"
    with pytest.warns(UserWarning, match="no such judge"):
        summary, rows = collect(out, env=partial(env, on_error="skip"))
    assert rows and 1 not in {row["index"] for row in rows}
    assert (summary.failed, summary.sampled) == (4, 24)
    assert "gave up: 4" in str(summary)


class TwoTurns(Environment):
    """Asks twice."""

    def __len__(self):
        return 2

    def reset(self, index=None):
        self.ids = torch.tensor([70, 71])
        return Observation(self.ids, torch.ones(2), "p")

    def respond(self, tokens):
        self.ids = torch.cat([self.ids, tokens])
        if len(self.ids) > 11:
            return StepResult(0.0, True, None)
        return StepResult(0.0, False, Observation(self.ids, torch.ones(len(self.ids)), "p"))


def test_an_episode_of_several_turns_is_no_response(tmp_path):
    with pytest.raises(ValueError, match=r"TwoTurns took \d+ turns: a pair holds one response"):
        collect(tmp_path / "pairs.jsonl", env=TwoTurns())
    assert not (tmp_path / "pairs.jsonl").exists()


def test_an_algorithm_that_samples_nothing_is_refused(tmp_path):
    model, tokenizer = tiny_model()
    module = DPO(DPOConfig(model_name="random:tiny"), model=model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="DPO learns from pairs that exist: use algo=ppo"):
        collect_preferences(lambda: module, None, None, SETTINGS, out=str(tmp_path / "pairs.jsonl"))


def test_several_processes_are_refused(tmp_path):
    trainer = L.Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"in one process, not 2: set trainer\.devices=1"):
        collect_preferences(
            lambda: PPO(config()), None, trainer, SETTINGS, out=str(tmp_path / "a.jsonl")
        )


# -------------------------------------------------------------------------- train.py


def test_pairs_collected_by_a_command_are_what_dpo_trains_on(tmp_path, command):
    quick = ["model=tiny", "trainer.precision=32-true"]
    arguments = [
        *quick,
        "task=collect_preferences",
        "out=pairs.jsonl",
        "task.num_prompts=24",
        "task.truncated=keep",
    ]
    arguments += ["reward=function", "reward.path=mine:fn", "algo.max_new_tokens=6"]
    body = "return [float(len(r)) for r in responses]"
    (tmp_path / "mine.py").write_text(f"def fn(prompts, responses, metadata=None):\n    {body}\n")
    output = command(*arguments, "env=preference")
    pairs = len((tmp_path / "pairs.jsonl").read_text().splitlines())
    assert f"{pairs} pairs from 24 prompts in pairs.jsonl" in output and pairs >= 20
    output = command(*arguments, "env=text", status=1)
    assert "pairs.jsonl, line 1" in output and "holds pairs of other settings" in output
    output = command(*quick, "algo=dpo", "data.path=pairs.jsonl", "algo.num_epochs=1")
    assert "pairs to train on" in output


def test_an_answer_that_no_reward_applies_to_is_in_no_pair(tmp_path):
    def by_row(prompts, responses, metadata=None):
        return [None if i % 4 == 0 else float(i % 4) for i in range(len(responses))]

    summary, rows = collect(tmp_path / "pairs.jsonl", reward=by_row, batch_size=4)
    assert (summary.unscored, summary.sampled, summary.mean_sampled) == (6, 24, 2.0)
    assert "answers that no reward applies to, left out of pairs: 6" in str(summary)
    assert {(row["score_chosen"], row["score_rejected"]) for row in rows} == {(3.0, 1.0)}
