"""``benchmarks/gpu.py``: a part that fails or hangs loses no other one's result."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from gpu import table
from on_gpu.parts import Parts
from on_gpu.shapes import SHAPES, counts, tokenizer


def noted(parts):
    return {row["part"]: row for row in map(json.loads, parts.file.read_text().splitlines())}


def test_a_part_that_fails_or_hangs_is_noted_and_the_next_one_runs(tmp_path):
    parts = Parts(tmp_path / "gpu.jsonl", 60, [])
    assert parts.run("fails", lambda: 1 / 0) is None
    start = time.monotonic()
    assert parts.run("hangs", lambda: time.sleep(30), seconds=1) is None
    assert time.monotonic() - start < 10
    assert parts.run("works", lambda: {"same": True}) == {"same": True}
    rows = noted(parts)
    assert "ZeroDivisionError" in rows["fails"]["error"] and rows["fails"]["traceback"]
    assert "took more than 1 s" in rows["hangs"]["error"]
    assert "1 of 3 checks hold" in table(list(rows.values()))


def test_what_there_is_no_time_for_or_was_not_asked_for_does_not_run(tmp_path):
    late = Parts(tmp_path / "late.jsonl", 1, [])
    assert late.run("late", lambda: {"same": True}) is None
    assert noted(late)["late"]["error"] == "no time was left"
    parts = Parts(tmp_path / "gpu.jsonl", 60, ["first"])
    parts.run("first-step", lambda: {})
    parts.run("second", lambda: 1 / 0)
    assert list(noted(parts)) == ["first-step"]


@pytest.mark.parametrize("row", [{"same": False}, {"rc": 1, "error": "ended with 1"}])
def test_a_check_that_differs_does_not_hold(row):
    shown = table([{"part": "one", "took_s": 1.0} | row, {"part": "two", "took_s": 1.0}])
    assert "1 of 2 checks hold" in shown and "- one:" in shown


def test_shapes_are_of_the_size_that_they_are_named_by():
    for name, billions in (("0.5B", 0.494), ("1.5B", 1.54)):
        w = counts(name)
        assert w["layers"] + w["vocabulary"] == pytest.approx(billions * 1e9, rel=0.01)
    fast = tokenizer(SHAPES["tiny"]["vocab_size"])
    assert len(fast) == 512 and len(fast("ten letters")["input_ids"]) == 11
    assert fast.decode([511]) == "word252"
