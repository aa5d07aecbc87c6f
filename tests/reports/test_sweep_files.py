"""A comparison is printed, and written as a table, as data and as a page."""

import csv
import io
import json
import math
import re
import shlex

import pytest
from report_helpers import METRIC, make_run, write_job
from rich.console import Console

from rlmodules.reports.comparison import compare
from rlmodules.reports.effects import effects_of
from rlmodules.reports.statistics import Estimate
from rlmodules.reports.sweep_files import write
from rlmodules.reports.sweep_page import axis_of, curve_charts
from rlmodules.reports.table import Digits, duration, show
from rlmodules.reports.winner import command_of

LR, SIZE = "algo.learning_rate", "algo.batch_size"
GRID = {  # reward = 0.1 for the rate, 0.02 for the size, 0.2 for the seed, and a little besides
    (1e-5, 32): [0.10, 0.31], (1e-5, 64): [0.12, 0.32],
    (3e-5, 32): [0.20, 0.40], (3e-5, 64): [0.23, 0.42],
}  # fmt: skip


def make_grid(folder, results=None, **more):
    for number, ((rate, size), values) in enumerate((results or GRID).items()):
        for seed, value in enumerate(values):
            history = [
                {"iteration": float(i), "tokens": 10.0 * i * size, METRIC: value * i / 2,
                 "rollout/kl": 0.1}
                for i in (1, 2)
            ]  # fmt: skip
            make_run(
                folder / f"lr={rate},batch_size={size},seed={seed}", value, seed,
                overrides=[f"{LR}={rate}", f"{SIZE}={size}"], settings={LR: rate, SIZE: size},
                history=history, before={METRIC: 0.0}, number=2 * number + seed, **more,
            )  # fmt: skip
    return compare([folder])


def printed(comparison, width=120):
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    show(comparison, console)
    return console.file.getvalue()


def test_the_table_shows_every_number_and_the_command(tmp_path):
    text = printed(make_grid(tmp_path))
    row = next(line for line in text.splitlines() if line.startswith("lr=3e-5, batch_size=64"))
    assert " ".join(row.split()[2:]) == "0.325 ± 1.207 +0.120 ± 0.127 best 2 10 s 20 s 2.56k"
    assert "python train.py algo=ppo algo.learning_rate=3e-05 algo.batch_size=64 seed=0" in text
    assert "difference to lr=1e-5, batch_size=32" in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_terminal_of_any_width_shows_whole_numbers(tmp_path, width):
    lines = printed(make_grid(tmp_path), width).splitlines()
    assert sum("0.325 ± 1.207 +0.120 ± 0.127" in line for line in lines) == 1
    assert all(len(line) <= width for line in lines if not line.startswith("  python"))


def test_it_says_of_how_many_pairs_a_difference_is(tmp_path):
    results = {(1e-5, 32): [0.1, 0.3], (3e-5, 32): [0.2, 0.4, 0.7]}
    assert " 3 (2 paired) " in printed(make_grid(tmp_path, results))


def test_what_failed_is_listed_with_its_reason_and_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_grid(tmp_path)
    for i in range(11):
        make_run(tmp_path / f"x{i:02}", seed=9, status="failed")
    write_job(tmp_path / "y[1]", "algo=ppo", "seed=[3]")
    text = printed(compare(["."]))
    assert "  x00: failed: ValueError: too large" in text and "and 2 more" in text


def test_text_of_an_error_is_no_markup(tmp_path):
    make_grid(tmp_path)
    folder = make_run(tmp_path / "x", seed=9, status="failed")
    (folder / "error.txt").write_text("ValueError: [red]x[/] [/b] data=[1]")
    assert "[red]x[/] [/b] data=[1]" in printed(compare([tmp_path]))


def test_the_command_is_quoted_and_without_the_sweeps_own_overrides(tmp_path):
    told = ["data.prompts=[Hi there,$HOME]", "hparams_search=optuna", "sweep.retry_failed=true"]
    run = make_run(tmp_path / "a", 0.5, 3, overrides=told)
    command = command_of(compare([run]).rows[0])
    assert shlex.split(command)[:3] == ["python", "train.py", "algo=ppo"]
    assert shlex.split(command)[3:] == ["data.prompts=[Hi there,$HOME]", "seed=3"]


@pytest.mark.parametrize(
    ("halves", "means", "text"),
    [
        ([0.031, 0.2], [0.5, 0.25], "0.500 ± 0.031"),
        ([3.1], [512.0], "512.0 ± 3.1"),
        ([120.0], [5123.0], "5123 ± 120"),
        ([1.2], [0.325], "0.325 ± 1.200"),
        ([None], [0.01234], "0.01234"),
        ([None], [0.0], "0.000"),
        ([1e-12], [1.0], "1.000000 ± 0.000000"),
    ],
)
def test_numbers_have_the_digits_that_the_interval_leaves(halves, means, text):
    found = [
        Estimate(mean, 1) if half is None else Estimate(mean, 3, mean - half, mean + half)
        for mean, half in zip(means, halves, strict=True)
    ]
    assert Digits(found).said(found[0]) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (3.04, "3.0 s"), (48.3, "48 s"), (720.0, "12 min"), (12240.0, "3.4 h")],
)
def test_times_are_short(seconds, text):
    assert duration(seconds) == text


# ------------------------------------------------------------------- files


def test_the_csv_file_has_full_digits_and_a_column_a_seed(tmp_path):
    write(make_grid(tmp_path / "s"), tmp_path / "out")
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == [
        "lr=3e-5,batch_size=64", "lr=3e-5,batch_size=32",
        "lr=1e-5,batch_size=64", "lr=1e-5,batch_size=32",
    ]  # fmt: skip
    best = rows[0]
    assert (best[LR], best[SIZE], best["seed 0"], best["seed 1"]) == ("3e-05", "64", "0.23", "0.42")
    assert float(best[f"{METRIC} mean"]) == 0.325 and best[f"{METRIC} count"] == "2"
    assert rows[-1][f"{METRIC} difference mean"] == ""


def test_the_json_file_has_every_run_and_no_nan(tmp_path):
    make_grid(tmp_path / "s")
    make_run(tmp_path / "s" / "x", seed=9, status="failed")
    comparison = compare([tmp_path / "s"])
    write(comparison, tmp_path / "out")
    text = (tmp_path / "out" / "sweep.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)
    assert (found["metric"], found["direction"], found["first"]) == (
        METRIC,
        "up",
        "lr=1e-5,batch_size=32",
    )
    assert found["best"] == "lr=3e-5,batch_size=64" and found["command"].startswith("python train")
    runs = [run for setting in found["settings"] for run in setting["runs"]] + found["unplaced"]
    assert len(runs) == 9 and {run["status"] for run in runs} == {"done", "failed"}
    assert found["settings"][0]["from_best"] is None


def test_the_page_needs_nothing_else_and_says_it_all(tmp_path):
    comparison = make_grid(tmp_path / "s")
    write(comparison, tmp_path / "out")
    page = (tmp_path / "out" / "sweep.html").read_text()
    bundle = next(text for text in page.split("<script>") if "plotly.js" in text[:200])
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.replace(bundle, ""))
    assert len(page) < 2_000_000
    for row in comparison.rows:
        assert row.name.replace(",", ", ") in page
    assert "&#43;0.120 ± 0.127" in page or "+0.120 ± 0.127" in page
    kinds = re.findall(r'<figure class="chart (\w+)">', page)
    assert kinds == ["curves", "curves", "intervals", "intervals", "parallel"]


def test_a_name_cannot_end_the_page(tmp_path):
    option = "env.text"
    for i, value in enumerate(["</script><b>x", "b"]):
        make_run(
            tmp_path / "s" / str(i), i, overrides=[f"{option}={value}"], settings={option: value}
        )
    write(compare([tmp_path / "s"]), tmp_path / "out")
    assert "</script><b>x" not in (tmp_path / "out" / "sweep.html").read_text()


def test_a_value_that_json_does_not_have_is_written_as_a_word(tmp_path):
    for value in (math.inf, 1.0):
        told = {"overrides": [f"algo.clip={value}"], "settings": {"algo.clip": value}}
        make_run(tmp_path / "s" / f"{value}", 0.5, **told)
    write(compare([tmp_path / "s"]), tmp_path / "out")
    text = (tmp_path / "out" / "sweep.json").read_text()
    assert '"algo.clip": "inf"' in text and json.loads(text, parse_constant=pytest.fail)


def test_a_page_without_any_result_is_written(tmp_path):
    make_run(tmp_path / "s" / "a", status="failed")
    write(compare([tmp_path / "s"]), tmp_path / "out")
    assert "ValueError: too large" in (tmp_path / "out" / "sweep.html").read_text()


# ------------------------------------------------------------------- curves and effects


def test_a_curve_is_the_mean_where_all_seeds_have_a_value(tmp_path):
    chart = curve_charts(make_grid(tmp_path, {(1e-5, 32): [0.2, 0.4]}))[0]
    *seeds, mean = chart.data["series"]
    assert [line["style"] for line in (*seeds, mean)] == ["thin", "thin", "points"]
    assert mean["x"] == [0, 1, 2] and mean["y"] == pytest.approx([0.0, 0.15, 0.3])


def test_batches_of_several_sizes_are_drawn_over_tokens(tmp_path):
    comparison = make_grid(tmp_path)
    assert axis_of(comparison.rows, METRIC) == "tokens"
    alike = [row for row in comparison.rows if row.setting.values[SIZE] == 32]
    assert axis_of(alike, METRIC) == "iteration"


def test_runs_that_count_other_things_are_drawn_all_the_same(tmp_path):
    history = [{"step": 1.0, METRIC: 0.1}, {"step": 2.0, METRIC: 0.2}]
    told = {"overrides": ["algo=dpo"], "choices": {"algo": "dpo"}}
    make_run(tmp_path / "a", 0.2, history=history, **told)
    make_run(tmp_path / "b", 0.2, history=[{"iteration": 1.0, METRIC: 0.2}])
    chart = curve_charts(compare([tmp_path]))[0]
    assert chart.data["x"] == "iteration or step"
    assert [len(line["x"]) for line in chart.data["series"]] == [2, 1]


def test_the_effect_of_a_value_is_told_with_all_else_equal(tmp_path):
    """Of the rate: 0.10, 0.09, 0.11, 0.10 in the four pairs of size and seed; mean 0.10."""
    rate, size = effects_of(make_grid(tmp_path))
    assert (rate.option, rate.name) == (LR, "lr")
    assert [value.name for value in rate.values] == ["1e-5", "3e-5"]
    low, high = rate.values
    assert (low.mean.mean, high.mean.mean) == pytest.approx(
        (0.2125, 0.3125)
    ) and low.mean.count == 4
    assert low.difference is None and high.difference.count == 4
    assert high.difference.mean == pytest.approx(0.10)
    half = 3.182446305 * (0.0002 / 3) ** 0.5 / 4**0.5
    assert high.difference.half == pytest.approx(half, rel=1e-6)
    assert [value.name for value in size.values] == ["32", "64"]


def test_where_nothing_else_is_equal_there_is_no_difference(tmp_path):
    results = {(1e-5, 32): [0.1, 0.2], (3e-5, 64): [0.3, 0.5]}
    rate, _ = effects_of(make_grid(tmp_path, results))
    assert [value.difference for value in rate.values] == [None, None]


def test_many_values_are_told_in_quarters(tmp_path):
    rates = [float(f"{i}e-5") for i in range(1, 13)]
    results = {(rate, 32): [i / 10] for i, rate in enumerate(rates)}
    (rate,) = effects_of(make_grid(tmp_path, results))
    assert [value.mean.mean for value in rate.values] == pytest.approx([0.1, 0.4, 0.7, 1.0])
    assert rate.values[0].name == "1e-5 to 3e-5"
