"""Runs are one setting if nothing but the seed makes them differ."""

import pytest
from report_helpers import make_run, write_job

from rlmodules.reports.differences import group, read_value
from rlmodules.reports.reading import read_run
from rlmodules.resuming.table import GROUPS_AROUND, OPTIONS_AROUND

LR = "algo.learning_rate"


def grouped(tmp_path, *runs):
    """Names of the settings, of runs that are told by the arguments of ``make_run``."""
    read = [read_run(make_run(tmp_path / f"r{i}", 0.5, **run)) for i, run in enumerate(runs)]
    found = group(read)
    return [setting.name for setting in found.settings], list(found.consequences), found


def told(option, value, **more):
    return {"overrides": [f"{option}={value}"], "settings": {option: value}} | more


def test_seeds_and_what_follows_them_make_no_setting(tmp_path):
    runs = [
        {"seed": s, "settings": {"data.seed": s}, "raw": {"data.seed": "${seed}"}} for s in (0, 1)
    ]
    names, _, found = grouped(tmp_path, *runs)
    assert names == ["all"] and len(found.settings[0].runs) == 2


def test_seeds_of_runs_whose_origin_is_unknown_make_none_either(tmp_path):
    runs = [{"seed": s, "settings": {"data.seed": s}} for s in (0, 1)]
    assert grouped(tmp_path, *runs)[0] == ["all"]


def test_a_seed_that_was_chosen_for_itself_does(tmp_path):
    runs = [told("env.seed", s, seed=0) for s in (0, 1)]
    assert grouped(tmp_path, *runs)[0] == ["seed=0", "seed=1"]


def test_a_default_and_the_same_value_given_are_one_setting(tmp_path):
    names, _, found = grouped(tmp_path, {}, told(LR, 5e-5, seed=1), told(LR, 1e-5, seed=1))
    assert names == ["lr=5e-5", "lr=1e-5"] and len(found.settings[0].runs) == 2


def test_what_is_an_interpolation_of_another_option_is_not_told_again(tmp_path):
    raw = {"trainer.max_epochs": "${algo.num_iterations}"}
    runs = [
        told("algo.num_iterations", n, raw=raw)
        | {"settings": {"algo.num_iterations": n, "trainer.max_epochs": n}}
        for n in (4, 8)
    ]
    assert grouped(tmp_path, *runs)[0] == ["num_iterations=4", "num_iterations=8"]


def test_folders_loggers_and_what_a_run_was_to_optimize_make_none(tmp_path):
    runs = [
        {"settings": {"callbacks.report.dirpath": str(tmp_path / f"r{i}"), "logger.csv.name": i}}
        for i in (0, 1)
    ]
    assert grouped(tmp_path, *runs)[0] == ["all"]


def test_nothing_that_stands_around_a_run_makes_one(tmp_path):
    options = {f"{name}.any" for name in GROUPS_AROUND} | {*OPTIONS_AROUND}
    runs = [{"settings": {name: f"{name} {i}" for name in options}} for i in (0, 1)]
    assert grouped(tmp_path, *runs)[0] == ["all"]


def test_the_jobs_of_a_real_sweep_are_told_apart_by_what_was_swept(tmp_path, command):
    """Whatever ``conf/`` says of a run's name, group or folder."""
    swept = ["algo.num_iterations=1", f"{LR}=1e-4,3e-4", "seed=0,1"]
    command("-m", "experiment=smoke", "logger=none", "hydra/launcher=basic", *swept)
    found = group([read_run(config.parent) for config in tmp_path.glob("multirun/**/config.yaml")
                   if config.parent.name != ".hydra"])  # fmt: skip
    assert sorted(setting.name for setting in found.settings) == ["lr=1e-4", "lr=3e-4"]
    assert found.consequences == ()


def test_a_callback_makes_one_if_it_was_asked_for(tmp_path):
    runs = [told("callbacks.stop.patience", n) for n in (1, 2)]
    assert grouped(tmp_path, *runs)[0] == ["patience=1", "patience=2"]


def test_what_differs_without_a_word_makes_one_too(tmp_path):
    """As where the YAML was edited between two runs: else both would be one setting."""
    runs = [{"settings": {"algo.gamma": g, "algo.lam": g}} for g in (0.9, 1.0)]
    assert grouped(tmp_path, *runs)[0] == ["gamma=0.9,lam=0.9", "gamma=1,lam=1"]


def test_what_a_choice_brings_with_it_is_a_consequence(tmp_path):
    runs = [
        {"overrides": [f"algo={a}"], "choices": {"algo": a, "data": d},
         "settings": {"module": a, "algo.beta": b}}
        for a, d, b in (("dpo", "pairs", 0.1), ("ppo", "rollouts", 0.0))
    ]  # fmt: skip
    names, consequences, _ = grouped(tmp_path, *runs)
    assert names == ["algo=dpo", "algo=ppo"]
    assert consequences == ["data", "algo.beta", "module"]


def test_what_a_choice_does_not_explain_is_none(tmp_path):
    runs = [
        {"overrides": [f"algo={a}"], "choices": {"algo": a}, "settings": {"algo.beta": b}}
        for a, b in (("dpo", 0.1), ("ppo", 0.0), ("ppo", 0.2))
    ]
    names, _, found = grouped(tmp_path, *runs)
    assert names == ["algo=dpo,beta=0.1", "algo=ppo,beta=0", "algo=ppo,beta=0.2"]
    assert found.consequences == ()


def test_lists_and_equal_numbers_are_compared_by_value(tmp_path):
    runs = [told("algo.objectives", v) for v in (["a"], ["a", "b"])] + [
        {"settings": {"algo.objectives": ["a"]}}
    ]
    assert grouped(tmp_path, *runs)[0] == ["objectives=[a]", "objectives=[a,b]"]
    runs = [{"settings": {"algo.x": v}} for v in (1, 1.0)]
    assert grouped(tmp_path / "n", *runs)[0] == ["all"]


def test_runs_that_ended_at_once_are_placed_by_their_overrides(tmp_path):
    done = [make_run(tmp_path / f"r{i}", 0.5, **told(LR, v)) for i, v in enumerate([1e-5, 3e-5])]
    jobs = [
        write_job(tmp_path / "a", "algo=ppo", f"{LR}=3e-5", "seed=1"),
        write_job(tmp_path / "b", "algo=ppo", "seed=1"),
    ]
    found = group([read_run(folder) for folder in (*done, *jobs)])
    assert [len(setting.runs) for setting in found.settings] == [1, 2]
    assert [run.name for run in found.unplaced] == ["b"]


def test_an_option_that_a_job_does_not_name_is_the_others_default(tmp_path):
    done = [make_run(tmp_path / "r0", 0.5), make_run(tmp_path / "r1", 0.5, **told(LR, 3e-5))]
    job = write_job(tmp_path / "a", "algo=ppo", "seed=1")
    found = group([read_run(folder) for folder in (*done, job)])
    assert [[run.name for run in s.runs] for s in found.settings] == [["r0", "a"], ["r1"]]


def test_of_a_sweep_in_which_all_ended_at_once_the_overrides_tell(tmp_path):
    jobs = [
        write_job(tmp_path / f"{i}", "algo=ppo", f"{LR}={v}", f"seed={s}")
        for i, (v, s) in enumerate([("1e-5", 0), ("1e-5", 1), ("3e-5", 0)])
    ]
    found = group([read_run(folder) for folder in jobs])
    assert [setting.name for setting in found.settings] == ["lr=1e-5", "lr=3e-5"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("3", 3), ("-2", -2), ("0.5", 0.5), (".5", 0.5), ("1E3", 1000.0),
        ("true", True), ("null", None), ("tiny", "tiny"), ("'a b'", "a b"), ("1e", "1e"),
        ("[1,2]", "[1,2]"), ("", ""),
    ],
)  # fmt: skip
def test_overrides_are_read_as_hydra_does(text, value):
    assert read_value(text) == value and type(read_value(text)) is type(value)
