"""Runs are compared by setting and seed: every number against one worked by hand."""

import math

import pytest
from report_helpers import METRIC, make_run, write_job, write_progress, write_result, write_start

from rlmodules.reports.comparison import compare
from rlmodules.reports.notes import notes_on
from rlmodules.reports.reading import read_run

LR = "algo.learning_rate"


def sweep(folder, results, option=LR, *, metric=METRIC, **more):
    """Runs of an option's values: ``{1e-5: [0.5, 0.6, None]}``, a value a seed; None failed."""
    number = 0
    for value, found in results.items():
        for seed, result in enumerate(found):
            told = {"overrides": [f"{option}={value}"], "settings": {option: value}}
            status = "failed" if result is None else "done"
            make_run(
                folder / f"{number}", result, seed, metric=metric, status=status, number=number,
                **told, **more,
            )  # fmt: skip
            number += 1
    return [folder]


TABLE = {1e-5: [0.5, 0.6, 0.7], 3e-5: [0.6, 0.65, 0.9], 1e-4: [0.1, 0.3, 0.2]}
"""Means 0.6, 0.71667, 0.2; to the first: 0.11667 ± 0.18973 and -0.4 ± 0.24841; to the best: the
first -0.11667 ± 0.18973, the last -0.5, -0.35, -0.7: -0.51667 ± 0.43620 (and ± 0.6291 at 97.5%)."""


def test_a_table_worked_by_hand(tmp_path):
    found = compare(sweep(tmp_path, TABLE), price_per_hour=36.0)
    assert (found.metric, found.direction) == (METRIC, "up")
    assert [row.name for row in found.rows] == ["lr=3e-5", "lr=1e-5", "lr=1e-4"]
    best, first, last = found.rows
    assert found.best is best and found.first is first
    assert [row.mean.mean for row in found.rows] == pytest.approx([2.15 / 3, 0.6, 0.2])
    assert first.mean.half == pytest.approx(0.2484138, abs=1e-7)
    assert first.difference is None and best.from_best is None
    assert (best.difference.mean, best.difference.half) == pytest.approx(
        (0.35 / 3, 0.1897292), abs=1e-6
    )
    assert (last.difference.mean, last.difference.half) == pytest.approx(
        (-0.4, 0.2484138), abs=1e-6
    )
    assert (last.from_best.mean, last.from_best.half) == pytest.approx(
        (-1.55 / 3, 0.4361993), abs=1e-6
    )
    assert [row.worse for row in found.rows] == [False, False, True]
    assert [row.surely_worse for row in found.rows] == [False, False, False]
    assert found.tied == [first]
    assert best.seconds == 10.0 and best.cost.device_seconds == 30.0
    assert best.cost.price == pytest.approx(30.0 * 36.0 / 3600)


def test_where_less_is_better_the_least_is_best(tmp_path):
    found = compare(sweep(tmp_path, TABLE, metric="val/loss"))
    assert [row.name for row in found.rows] == ["lr=1e-4", "lr=1e-5", "lr=3e-5"]
    assert found.direction == "down" and [row.worse for row in found.rows] == [False, True, True]
    assert compare([tmp_path], direction="maximize").best.name == "lr=3e-5"


def test_of_a_metric_of_which_nothing_is_known_none_is_best(tmp_path):
    found = compare(sweep(tmp_path, TABLE, metric="val/mine"))
    assert found.best is None and found.tied == [] and found.rows[0].name == "lr=3e-5"
    assert "Nothing says whether a higher val/mine is better" in notes_on(found)[0]
    assert compare([tmp_path], direction="minimize").best.name == "lr=1e-4"


def test_only_seeds_that_both_have_are_paired(tmp_path):
    found = compare(sweep(tmp_path, {1e-5: [0.5, 0.6, 0.7], 3e-5: [0.6, None, 0.9]}))
    other = found.rows[-1]
    assert other.values == {0: 0.6, 2: 0.9} and (other.count("done"), other.count("failed")) == (
        2,
        1,
    )
    assert other.mean.mean == pytest.approx(0.75) and other.difference.mean == pytest.approx(0.15)
    assert other.difference.count == 2 and other.from_best.count == 2
    notes = " ".join(notes_on(found))
    assert "do not have the same seeds (seeds 1 not in all)" in notes
    assert "1 of 6 runs failed" in notes and "Fewer than 3 seeds: lr=3e-5." in notes


def test_settings_without_a_seed_in_common_have_no_difference(tmp_path):
    for i, (value, seed) in enumerate([(1e-5, 0), (1e-5, 1), (3e-5, 2), (3e-5, 3)]):
        told = {"overrides": [f"{LR}={value}"], "settings": {LR: value}}
        make_run(tmp_path / str(i), i / 10, seed, **told)
    found = compare([tmp_path])
    assert found.best.difference is None and not found.rows[1].worse
    assert found.tied == [found.rows[1]]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_value_that_is_no_number_is_left_out_and_said(tmp_path, value):
    sweep(tmp_path, {1e-5: [0.5, 0.6], 3e-5: [0.6, 0.7]})
    write_result(tmp_path / "3", value)
    found = compare([tmp_path])
    assert found.rows[0].values in ({0: 0.5, 1: 0.6}, {0: 0.6})
    assert any(n.startswith(f"3: done, without {METRIC} or") for n in notes_on(found))


def test_one_run_alone_is_a_table(tmp_path):
    found = compare([make_run(tmp_path / "a", 0.5)])
    (row,) = found.rows
    assert (row.name, row.mean.mean, row.mean.low, row.difference) == ("all", 0.5, None, None)
    assert "Fewer than 3 seeds: Every setting" in " ".join(notes_on(found))


def test_where_the_first_failed_the_next_one_is_what_others_are_compared_with(tmp_path):
    found = compare(sweep(tmp_path, {1e-5: [None, None], 3e-5: [0.5, 0.6], 1e-4: [0.6, 0.8]}))
    assert found.first.name == "lr=3e-5" and found.first.difference is None
    assert found.best.difference.mean == pytest.approx(0.15)
    assert found.rows[-1].difference is None


def test_a_sweep_without_any_result_is_a_table_too(tmp_path):
    found = compare(sweep(tmp_path, {1e-5: [None, None], 3e-5: [None]}))
    assert found.best is None and [row.mean for row in found.rows] == [None, None]
    assert notes_on(found) == ["3 of 3 runs failed and are left out of the means."]


def test_a_run_under_way_shows_how_it_is_and_is_no_result(tmp_path):
    sweep(tmp_path, {1e-5: [0.5], 3e-5: [None]})
    (tmp_path / "1" / "error.txt").unlink()
    write_progress(tmp_path / "1", 4, 12, metrics={METRIC: 0.8}, held_out=[(4, {METRIC: 0.8})])
    found = compare([tmp_path])
    assert [row.name for row in found.rows] == ["lr=1e-5", "lr=3e-5"]
    assert found.rows[1].mean is None and found.rows[1].latest == 0.8
    assert found.rows[1].cost.device_seconds == 5.0 and found.rows[1].seconds is None
    assert "1 of 2 runs are not done" in " ".join(notes_on(found))


def test_a_job_that_ended_at_once_fails_its_setting(tmp_path):
    sweep(tmp_path / "s", {1e-5: [0.5, 0.6], 3e-5: [0.6, 0.7]})
    write_job(tmp_path / "s" / "4", "algo=ppo", f"{LR}=3e-5", "seed=2")
    write_job(tmp_path / "s" / "5", "algo=ppo", "seed=2")
    found = compare([tmp_path / "s"])
    assert found.rows[-1].name == "lr=3e-5" and len(found.rows[-1].setting.runs) == 3
    assert [run.name for run in found.grouping.unplaced] == ["5"]
    assert "cannot be told of runs that ended at once: 5." in " ".join(notes_on(found))


def test_several_runs_of_one_seed_are_one_draw(tmp_path):
    runs = [make_run(tmp_path / name, value, 0) for name, value in (("a", 0.1), ("b", 0.3))]
    found = compare(runs)
    assert found.rows[0].values == {0: 0.3}
    assert "all has several runs with seed 0" in " ".join(notes_on(found))


def test_runs_without_a_seed_are_draws_and_never_pairs(tmp_path):
    for i, value in enumerate([1e-5, 1e-5, 3e-5, 3e-5]):
        make_run(tmp_path / str(i), i / 10, None, overrides=[f"{LR}={value}"], settings={LR: value})
    found = compare([tmp_path])
    assert [row.mean.count for row in found.rows] == [2, 2] and found.best.difference is None


def test_an_option_that_changed_nothing_is_noticed(tmp_path):
    notes = notes_on(compare(sweep(tmp_path, {1: [0.5, 0.6], 2: [0.5, 0.6]}, "algo.save_every")))
    assert any("save_every=2 and save_every=1 have the same" in note for note in notes)


def test_luck_of_the_best_is_said(tmp_path):
    notes = notes_on(compare(sweep(tmp_path, TABLE)))
    assert "1 of 2 others cannot be told from the best, lr=3e-5" in notes[0]
    assert "picked as the best of 3" in notes[1] and "2 cannot be told" in notes[1]


def test_another_task_is_another_quantity(tmp_path):
    for i, env in enumerate(["text", "math"]):
        told = {"overrides": [f"env={env}"], "choices": {"env": env}}
        make_run(tmp_path / str(i), 0.5 + i, settings={"env._target_": env}, **told)
    found = compare([tmp_path])
    assert [row.name for row in found.rows] == ["env=math", "env=text"]
    assert "What is measured differs between the settings (env" in " ".join(notes_on(found))


# ------------------------------------------------------------------- by what


def test_the_metric_is_what_all_were_to_optimize(tmp_path):
    make_run(tmp_path / "a", 0.5, metric="val/accuracy", after={"val/loss": 0.7, "val/kl": 0.1})
    make_run(tmp_path / "b", 0.6, 1, metric="val/margin", after={"val/loss": 0.6})
    said = "to optimize val/accuracy and val/margin: name one .*all have val/loss"
    with pytest.raises(ValueError, match=said):
        compare([tmp_path])
    assert compare([tmp_path], "val/loss").rows[0].values == {0: 0.7, 1: 0.6}
    found = compare([tmp_path], "val/kl")  # one has it
    assert sum(len(row.values) for row in found.rows) == 1
    assert "b: done, without val/kl" in " ".join(notes_on(found))


def test_a_metric_that_no_run_has_is_refused_with_those_that_there_are(tmp_path):
    make_run(tmp_path / "a", 0.5)
    with pytest.raises(ValueError, match=r"'val/rewrd' is not logged by any of these.*val/reward"):
        compare([tmp_path], "val/rewrd")
    with pytest.raises(ValueError, match=r"'train/zzz' is not logged .*\(all have val/reward\)"):
        compare([tmp_path], "train/zzz")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"direction": "up"}, "direction='up': choose maximize or minimize"),
        ({"price_per_hour": 0}, "price_per_hour=0 must be a finite number above 0"),
        ({"price_per_hour": -1.0}, "price_per_hour=-1.0 must be a finite number above 0"),
        ({"price_per_hour": math.nan}, "price_per_hour=nan must be a finite number above 0"),
    ],
)
def test_an_argument_that_there_is_not_is_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        compare([make_run(tmp_path / "a", 0.5)], **options)


def test_runs_that_are_read_already_are_not_read_again(tmp_path):
    run = read_run(make_run(tmp_path / "a", 0.5))
    assert compare([run]).runs == [run]


# ------------------------------------------------------------------- costs


@pytest.mark.parametrize(
    ("devices", "nodes", "count"),
    [("auto", 1, 1), (2, 1, 2), ("2", 3, 6), ([0, 3], 1, 2), ("0,1,2", 1, 3), (-1, 1, 1)],
)
def test_time_costs_as_many_devices_as_there_are(tmp_path, devices, nodes, count):
    settings = {"trainer.devices": devices, "trainer.num_nodes": nodes}
    history = [
        {"iteration": 1.0, "tokens": 5.0},
        {"iteration": 2.0, "tokens": 12.0, "episodes": 4.0},
    ]
    for seed in (0, 1):
        make_run(tmp_path / str(seed), 0.5, seed, settings=settings, history=history)
    found = compare([tmp_path], price_per_hour=1.8)
    cost = found.rows[0].cost
    assert cost.device_seconds == 20.0 * count and cost.price == pytest.approx(0.01 * count)
    assert (cost.tokens, cost.episodes, cost.examples) == (24.0, 8.0, None)
    left_open = "leave their devices to the machine" in " ".join(notes_on(found))
    assert left_open == (devices == "auto")


@pytest.mark.parametrize(
    ("accelerator", "has", "count"),
    [("auto", ["H100"] * 4, 4), ("cpu", ["H100"] * 4, 1), ("auto", [], 1)],
)
def test_a_run_that_took_all_devices_of_its_machine_costs_them_all(
    tmp_path, accelerator, has, count
):
    settings = {"trainer.devices": "auto", "trainer.accelerator": accelerator}
    run = make_run(tmp_path / "a", 0.5, settings=settings)
    write_start(run, machine={"name": "m", "accelerators": has})
    found = compare([run], price_per_hour=1.0)
    assert found.rows[0].cost.device_seconds == 10.0 * count
    assert "leave their devices" not in " ".join(notes_on(found))


def test_runs_of_another_code_or_machine_are_said(tmp_path):
    for i, commit in enumerate(["aaaaaaaaaaaa", "bbbbbbbbbbbb"]):
        run = make_run(tmp_path / str(i), 0.5, i)
        write_start(
            run, versions={"torch": f"2.{i}", "peft": "1"}, git={"commit": commit},
            machine={"name": f"m{i}"},
        )  # fmt: skip
    make_run(tmp_path / "2", 0.5, 2)  # of long ago
    notes = notes_on(compare([tmp_path]))
    assert "The runs are of several commits of the code: aaaaaaaaaa, bbbbbbbbbb." in notes
    assert "The runs are of several versions of torch: 2.0, 2.1." in notes
    assert "Times are of several machines: m0, m1." in notes
    assert not any("peft" in note for note in notes)


def test_a_best_setting_of_fewer_seeds_is_said(tmp_path):
    notes = notes_on(compare(sweep(tmp_path, {1e-5: [0.5, 0.6, 0.7], 3e-5: [0.9]})))
    assert any("lr=3e-5, is the mean of 1 where others have 3" in note for note in notes)


@pytest.mark.parametrize(("metric", "good"), [(METRIC, 0.9), ("val/loss", 0.1)])
def test_a_setting_that_broke_down_is_not_the_best_by_the_runs_that_did_not(tmp_path, metric, good):
    results = {1e-5: [0.5, 0.6], 3e-5: [good, None], 1e-4: [0.7, 0.7]}
    found = compare(sweep(tmp_path, results, metric=metric))
    assert found.rows[-1].name == "lr=3e-5"
    assert found.best.name == ("lr=1e-4" if good == 0.9 else "lr=1e-5")
    said = "lr=3e-5 has a better mean, but of those 1 of its 2 runs that have a result"
    assert any(note.startswith(said) for note in notes_on(found))
    broken = compare(sweep(tmp_path / "all", {1e-5: [0.5, None], 3e-5: [0.6, None]}))
    assert broken.best.name == "lr=3e-5"  # there is none that did not
