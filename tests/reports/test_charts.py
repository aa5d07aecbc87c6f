"""Charts as data and as tables, and that a page which carries them needs nothing else."""

import json
import math
import re

import pytest
from page_helpers import Page

from rlmodules.reports.charts import Axis, Series, curves, intervals, number, parallel, spaced
from rlmodules.views import pages
from rlmodules.views.pages import STATIC, write_page

NAN = float("nan")


def test_curves_are_data_and_a_table_with_gaps():
    lines = [
        Series("training", [1, 2, 3], [0.5, NAN, 1 / 3], smooth=True),
        Series("held out", [0, 3], [0.25, 1.0], low=[0.2, None], high=[0.3, 2.0], style="points"),
        Series("held out", [0, 3], [9, 9], style="thin"),
    ]
    chart = curves("reward", lines, healthy=(None, 1.0), y="points")
    assert chart.headings == ["iteration", "training", "held out"]
    assert chart.rows == [
        ["0", "", "0.25"], ["1", "0.5", ""], ["2", "", ""], ["3", "0.3333", "1"],
    ]  # fmt: skip
    drawn = json.loads(json.dumps(chart.drawn, allow_nan=False))
    assert drawn["series"][0]["y"] == [0.5, None, 0.333333] and drawn["series"][0]["smooth"]
    assert drawn["series"][1]["low"] == [0.2, None] and drawn["healthy"] == [None, 1.0]
    assert (drawn["kind"], drawn["title"], drawn["y"]) == ("curves", "reward", "points")


def test_intervals_are_rows_of_three_numbers():
    chart = intervals("difference", {"a": (0.0, None, None), "b": (0.1, -0.02, 0.22)}, zero=True)
    assert chart.rows == [["a", "0", "", ""], ["b", "0.1", "-0.02", "0.22"]]
    assert chart.drawn["rows"][1] == {"name": "b", "value": 0.1, "low": -0.02, "high": 0.22}
    assert chart.drawn["zero"]


@pytest.mark.parametrize(
    ("values", "scale", "places"),
    [
        ([1.0, 2.0, 3.0], "linear", [0, 0.5, 1]),
        ([1e-6, 1e-5, 1e-4, 1e-2], "log", [0, 0.25, 0.5, 1]),
        ([0.0, 1e-4, 1.0], "linear", [0, 1e-4, 1]),
        (["b", "a", "b"], "words", [0, 1, 0]),
        ([True, False], "words", [0, 1]),
        ([3, "auto"], "words", [0, 1]),
        ([5, 5], "linear", [0.5, 0.5]),
        (["one"], "words", [0]),
        ([1, None, 2], "linear", [0, None, 1]),
    ],
)
def test_an_axis_holds_its_values(values, scale, places):
    axis = Axis.over("x", values)
    found = [axis.place(value) for value in values]
    assert axis.scale == scale
    assert found == [place if place is None else pytest.approx(place) for place in places]


def test_parallel_axes_end_with_the_result_and_leave_out_rows_without_one():
    rows = {
        "a": {"reward": 0.1, "lr": 1e-5, "kl": True},
        "b": {"reward": 0.3, "lr": 3e-5},
        "failed": {"lr": 7e-5},
        "diverged": {"reward": NAN, "lr": 1.0},
    }
    chart = parallel("all", rows, result="reward")
    assert [axis["name"] for axis in chart.drawn["axes"]] == ["lr", "kl", "reward"]
    assert [row["name"] for row in chart.drawn["rows"]] == ["a", "b"]
    assert chart.drawn["rows"][1]["at"] == [1.0, None, 1.0]
    assert chart.rows == [["a", "1e-05", "true", "0.1"], ["b", "3e-05", "null", "0.3"]]
    assert dict(chart.drawn["axes"][0]["ticks"]) == {0.0: "1e-05", 1.0: "3e-05"}
    assert parallel("none", {}, result="reward").rows == []


def test_a_long_table_is_thinned_evenly_with_both_ends():
    assert spaced(range(7), 4) == [0, 2, 4, 6] and spaced([1, 2], 4) == [1, 2]
    many = list(range(10_000))
    assert len(curves("x", [Series("a", many, many)]).rows) == 200


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (0.123456, "0.1235"), (NAN, ""), (math.inf, ""), (None, ""), (3e-5, "3e-05")],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


EVIL = "</script><script>alert(1)</script><img src=http://evil.example/x>"


def page_with(tmp_path, monkeypatch, **values):
    """A page of charts, without the library that would hide what is looked for."""
    template = (
        '{% extends "page.html" %}{% import "charts.html" as view with context %}'
        "{% block body %}{{ view.smoothing(0.5) }}{{ view.charts(some) }}{% endblock %}"
    )
    (tmp_path / "own.html").write_text(template)
    monkeypatch.setattr(pages, "TEMPLATES", [pages.TEMPLATES, tmp_path])
    write_page(tmp_path / "page.html", "own.html", **values)
    text = (tmp_path / "page.html").read_text()
    library = (STATIC / pages.PLOTLY).read_text()
    assert text.count(library) == 1
    return text.replace(library, "")


def test_a_page_fetches_nothing_and_takes_names_as_text(tmp_path, monkeypatch):
    charts = [
        curves(EVIL, [Series(EVIL, [1], [1])], x=EVIL, note=EVIL),
        intervals(EVIL, {EVIL: (1, 0, 2)}),
        parallel(EVIL, {EVIL: {EVIL: EVIL, "r": 1}}, result="r"),
    ]
    text = page_with(tmp_path, monkeypatch, title=EVIL, some=charts)
    page = Page(text)
    assert not page.fetched() and "img" not in page.names()
    assert "default-src 'none'" in text  # the browser holds the page to it
    assert [data["title"] for data in page.data] == [EVIL] * 3 and EVIL in page.text
    assert "url(" not in text and "@import" not in text


def test_the_library_is_the_one_that_its_note_names_and_stands_in_a_page_as_it_is():
    library, note = (STATIC / pages.PLOTLY).read_text(), (STATIC / "README.md").read_text()
    version = re.search(r"v(\d+\.\d+\.\d+)", library[:200])[1]
    assert version in pages.PLOTLY and f"dist-min@{version}" in note
    assert "MIT" in (STATIC / f"plotly-basic-{version}.LICENSE").read_text()
    assert "</script" not in library.lower() and len(library) < 1_500_000
