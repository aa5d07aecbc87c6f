"""``task=benchmark`` as far as it goes without lm-eval: what it refuses, and what pages show."""

import json
import sys

import pytest
from report_helpers import make_run

from rlmodules.reports.benchmarks import lines
from rlmodules.reports.reading import read_run
from rlmodules.reports.run_page import write_run_page
from rlmodules.tasks.harness import paired_stderr, rows_of

ASKED = ["task=benchmark", "tasks=[capitals]", "model=tiny"]


def figure(values, **more):
    mean = sum(values) / len(values)
    told = {"value": mean, "stderr": 0.1, "shots": 0, "n": len(values), "higher_is_better": True}
    return told | {"by_example": dict(enumerate(values))} | more


def test_without_the_package_it_says_how_to_install_it(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    said = command(*ASKED, status=1)
    assert 'needs lm-evaluation-harness: pip install "rlmodules[benchmark]"' in said


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["task=benchmark"], "leaves open: tasks=..."),
        ([*ASKED, "algo.learning_rate=1"], "task=benchmark has no use for algo.learning_rate=1"),
        ([*ASKED, "seed=3"], "task=benchmark has no use for seed=3"),
        ([*ASKED, "run=here"], "takes its model from run= has no use for model=tiny"),
        ([*ASKED[:2], "run=here", "out=a"], "the figures of a run go into its folder"),
        ([*ASKED, "out=no/where.json"], "out='no/where.json': there is no folder"),
        ([*ASKED, "sampler=vllm", "sampler.url=http://127.0.0.1:1"], "leave sampler= out"),
        ([*ASKED, "task.batch_size=0"], "task.batch_size=0 must be a whole number, 1 or more"),
        ([*ASKED, "task.num_fewshot=-1"], "task.num_fewshot=-1 must be a whole number"),
        ([*ASKED, "task.limit=1.5"], "task.limit=1.5 must be a whole number, a share below 1"),
        ([*ASKED, "task.limits=2"], "no `limits` in task: did you mean limit?"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_sentence(command, told, said):
    assert said in command(*told, status=1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (figure([0, 1, 1, 0]), figure([1, 1, 1, 0]), 0.25),  # differences 1, 0, 0, 0: sd 0.5
        (figure([0, 1, 1, 0]), figure([0, 1, 1, 0]), 0.0),
        (figure([0, 1]), figure([0, 1], value=3.0), None),  # no mean over examples
        (figure([0, 1]), figure([0, 1, 1]), None),
        (figure([0.0, float("nan")], value=0.0), figure([0, 1]), None),
        (figure([1]), figure([0]), None),
    ],
)
def test_the_error_of_a_difference_is_of_pairs(old, new, expected):
    assert paired_stderr(old, new) == expected


def test_the_report_page_has_the_figures_and_none_where_there_are_none(tmp_path):
    folder = tmp_path / "run"
    make_run(folder, 0.5)
    assert "Benchmarks" not in write_run_page(read_run(folder)).read_text()
    key = ("sums", "acc", "none")
    rows = list(rows_of({key: figure([0, 1, 1, 0])}, {key: figure([1, 1, 1, 0])}))
    (folder / "benchmark.json").write_text(json.dumps({"rows": rows}))
    told = ("sums, acc, 0-shot", "4", "0.500 ± 0.100", "0.750 ± 0.100", "+0.250 ± 0.250")
    assert lines({"rows": rows}) == [told]
    page = write_run_page(read_run(folder)).read_text()
    assert all(cell in page for cell in told)
    (folder / "benchmark.json").write_text("{")
    with pytest.raises(ValueError, match=r"benchmark.json cannot be read, remove it"):
        write_run_page(read_run(folder))
