"""Runs are read from their folders, whatever state they are in."""

import csv
import json
import math
import os

import pytest
from report_helpers import METRIC, make_run, write_job, write_progress, write_result

from rlmodules.reports.files import CONFIG, LOG, REPORT, RESULT
from rlmodules.reports.reading import find_runs, read_run, read_runs

HISTORY = [
    {"iteration": 1.0, "tokens": 10.0, "train/loss": 0.5},
    {"iteration": 2.0, "tokens": 30.0, "train/loss": 0.25, METRIC: 0.4},
]


def test_a_run_that_is_done_is_read_from_its_folder_alone(tmp_path):
    folder = make_run(
        tmp_path / "a", 0.4, 3, overrides=["algo.learning_rate=1e-5"],
        settings={"algo.learning_rate": 1e-5}, before={METRIC: 0.1}, history=HISTORY, seconds=7.5,
    )  # fmt: skip
    run = read_run(folder)
    assert (run.name, run.status, run.done, run.seed, run.seconds) == ("a", "done", True, 3, 7.5)
    assert run.overrides == ("algo=ppo", "algo.learning_rate=1e-5", "seed=3")
    assert run.settings["algo.learning_rate"] == 1e-5
    assert run.choices == {"algo": "ppo", "env": "text"}
    assert run.named["algo.seed"] == ["seed"]
    assert (run.unit, run.length) == ("iteration", 2)
    assert run.curve(METRIC) == [(0, 0.1), (2, 0.4)]
    assert run.curve("train/loss") == [(1, 0.5), (2, 0.25)]
    assert run.curve("train/loss", "tokens") == [(10, 0.5), (30, 0.25)]
    assert run.curve("train/loss", "episodes") == []
    assert run.value(METRIC) == 0.4 and run.value("train/loss") == 0.25
    assert run.value("val/none") is None
    assert run.metrics == ["train/loss", METRIC]


def test_the_result_is_the_optimized_metric_and_no_other(tmp_path):
    folder = make_run(tmp_path / "a", 0.4)
    write_result(folder, 0.41)
    assert read_run(folder).value(METRIC) == 0.41
    write_result(folder, 0.41, metric="val/other")
    assert read_run(folder).value(METRIC) == 0.4


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_no_number_is_no_value(tmp_path, value):
    folder = make_run(tmp_path / "a", 0.4)
    write_result(folder, value)
    assert read_run(folder).value(METRIC) is None


def test_what_became_none_is_not_what_it_was_before(tmp_path):
    """A report leaves out what is NaN: the last iteration had a loss, and it was no number."""
    history = [{"iteration": 1.0, "train/loss": 0.5}, {"iteration": 2.0}]
    run = read_run(make_run(tmp_path / "a", history=history))
    assert run.value("train/loss") is None
    assert run.curve("train/loss") == [(1, 0.5)]


def test_a_run_that_is_on_its_way_tells_how_far_it_is(tmp_path):
    folder = make_run(tmp_path / "a", status="unfinished")
    write_progress(
        folder, 4, 12, metrics={"rollout/reward": 0.3, METRIC: 0.2}, seconds=8.0,
        held_out=[(0, {METRIC: 0.1}), (4, {METRIC: 0.2})],
    )  # fmt: skip
    run = read_run(folder)
    assert (run.status, run.length, run.unit, run.seconds) == ("unfinished", 4, "iteration", 8.0)
    assert run.value(METRIC) == 0.2 and run.value("rollout/reward") == 0.3
    assert run.curve(METRIC) == [(0, 0.1), (4, 0.2)]


def test_a_run_with_a_checkpoint_alone_has_its_settings_and_no_value(tmp_path):
    run = read_run(make_run(tmp_path / "a", status="unfinished"))
    assert (run.status, run.seed, run.length, run.seconds) == ("unfinished", 0, None, None)
    assert run.value(METRIC) is None and run.curve(METRIC) == [] and run.metrics == []


def test_a_run_whose_only_record_is_csv_has_its_curves(tmp_path):
    folder = make_run(tmp_path / "a", status="unfinished", settings={"algo.num_epochs": 1})
    (folder / "csv").mkdir()
    with (folder / "csv" / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        rows = [["step", "train/loss", "val/loss"], [0, "", 0.7], [1, 0.6, ""], [2, "nan", 0.5]]
        writer.writerows(rows)
    run = read_run(folder)
    assert run.unit == "step"
    assert run.curve("train/loss") == [(1, 0.6)]
    assert run.curve("val/loss") == [(0, 0.7), (2, 0.5)]


def test_a_failed_run_says_why(tmp_path):
    run = read_run(make_run(tmp_path / "a", status="failed"))
    assert (run.status, run.error) == ("failed", "ValueError: too large")


def test_a_job_that_ended_without_a_word_says_what_it_printed_last(tmp_path):
    folder = write_job(tmp_path / "a", "algo=dpo", "+algo.x=1", "seed=2")
    (folder / LOG).write_text("step 3/30\nKilled\n\n")
    run = read_run(folder)
    assert (run.status, run.error, run.seed) == ("unfinished", "Killed", 2)
    assert run.choices == {"algo": "dpo"}


def test_an_error_that_was_mended_is_none(tmp_path):
    folder = make_run(tmp_path / "a", status="failed")
    write_result(folder, 0.5)
    run = read_run(folder)
    assert (run.status, run.error, run.value(METRIC)) == ("done", "", 0.5)


@pytest.mark.parametrize("end", [RESULT, REPORT])
def test_a_run_that_is_being_made_longer_is_not_done(tmp_path, end):
    folder = make_run(tmp_path / "a", 0.4)
    write_result(folder, 0.4)
    (folder / (RESULT if end == REPORT else REPORT)).unlink()
    os.utime(folder / end, (1, 1))
    write_progress(folder, 4, 12, held_out=[(4, {METRIC: 0.3})])
    assert read_run(folder).status == "unfinished" and read_run(folder).value(METRIC) == 0.3
    write_progress(folder, 12, 12)
    assert read_run(folder).done
    write_progress(folder, 4, 12)  # stopped early: its end was written after this
    os.utime(folder / "progress.json", (0, 0))
    assert read_run(folder).done


def test_samples_are_read_by_iteration(tmp_path):
    folder = make_run(tmp_path / "a", 0.4)
    (folder / "samples").mkdir()
    (folder / "samples" / "iteration-0012.csv").write_text('prompt,response\nHi,"a, b"\n')
    assert read_run(folder).samples() == {12: [{"prompt": "Hi", "response": "a, b"}]}


# ------------------------------------------------------------------- finding


def test_runs_are_found_below_a_folder_and_not_inside_of_one(tmp_path):
    names = ["s/lr=1e-5,seed=0", "s/lr=1e-4,seed=0", "s/9", "s/10", "s/deep/er/1"]
    for name in names:
        make_run(tmp_path / name, 0.1)
    make_run(tmp_path / "s/9/inner", 0.1)
    found = find_runs([tmp_path / "s"])
    wanted = ["9", "10", "deep/er/1", "lr=1e-5,seed=0", "lr=1e-4,seed=0"]
    assert [str(path.relative_to(tmp_path / "s")) for path in found] == wanted


def test_jobs_come_in_the_order_in_which_they_were_started(tmp_path):
    for number, name in enumerate(["lr=1e-4", "lr=1e-5", "x"]):
        make_run(tmp_path / "s" / name, 0.1, number=number if name != "x" else None)
    names = [run.name for run in read_runs([tmp_path / "s"])]
    assert names == ["lr=1e-5", "lr=1e-4", "x"]  # one has no number: by name
    make_run(tmp_path / "t" / "b", 0.1, number=0)
    make_run(tmp_path / "t" / "a", 0.1, number=1)
    assert [run.name for run in read_runs([tmp_path / "t"])] == ["b", "a"]


def test_runs_are_named_by_pattern_and_only_once(tmp_path, monkeypatch):
    for name in ("m/1/a", "m/2/b", "m/2/[c]"):
        make_run(tmp_path / name, 0.1)
    monkeypatch.chdir(tmp_path)
    found = find_runs(["m/2/b", "m/*/*", "m/2/[c]"])
    assert [str(path) for path in found] == ["m/2/b", "m/1/a", "m/2/[c]"]


@pytest.mark.parametrize("place", ["nowhere", "none*", "empty"])
def test_no_run_is_said_with_what_to_name(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"no run is found at {place.replace('*', '.')}.*runs=\["):
        find_runs([place])


def test_a_folder_that_is_no_run_or_half_a_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=f"is no run's folder: it has neither {CONFIG}"):
        read_run(tmp_path)
    folder = make_run(tmp_path / "a", 0.1)
    (folder / REPORT).write_text(json.dumps({"after": {}})[:-3])
    with pytest.raises(ValueError, match=r"report.json cannot be read, remove it or leave"):
        read_run(folder)
