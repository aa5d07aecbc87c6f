"""The examination of a reward model, with numbers worked by hand."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from rlmodules.callbacks.reward_report import RewardReport

NAN = float("nan")


class Judge:
    """Stands for a reward model that gave these scores."""

    def __init__(self, judgement, objectives=()):
        self.judgement, self.config = judgement, SimpleNamespace(objectives=objectives)

    whole = staticmethod(nullcontext)

    def judge(self, examples):
        self.examples = examples
        return self.judgement


def report_of(judge, folder, held_out=("a", "b")):
    """(report.json, report.txt) of a run that ends with this judge."""
    report = RewardReport(folder)
    report.history = [{"step": 1.0, "train/loss": 0.5}]
    datamodule = SimpleNamespace(eval_dataset=held_out)
    at = {"global_step": 1, "callbacks": []}
    run = SimpleNamespace(is_global_zero=True, datamodule=datamodule, **at)
    report.on_train_end(run, judge)
    return json.loads((folder / "report.json").read_text()), (folder / "report.txt").read_text()


def test_pairs_are_examined_for_errors_calibration_length_and_order(tmp_path):
    scores = torch.tensor([[3.0, 1.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    lengths = torch.tensor([[30.0, 10.0], [20.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    swapped = torch.tensor([-2.0, -2.0, -1.0, 0.0])  # the third pair is judged by its side
    judge = Judge({"scores": scores, "lengths": lengths, "swapped": swapped})
    written, text = report_of(judge, tmp_path)
    result = written["examination"]
    assert judge.examples == ["a", "b"]
    assert result["pairs"] == 4 and result["accuracy"] == 2.5 / 4
    assert result["accuracy_low"] < 2.5 / 4 < result["accuracy_high"]
    assert result["length_correlation"] == pytest.approx(1.0)
    assert result["margin_length_correlation"] == pytest.approx(1.0)
    assert result["swap_consistency"] == 0.75
    assert result["calibration_error_at_temperature"] <= result["calibration_error"] + 0.1
    assert "Right on 62.5% of 4 held-out pairs" in text and "75.0% judged alike" in text
    assert "of scores +1.00, of margins +1.00" in text
    assert str(tmp_path / "calibration.png") in text


def test_objectives_are_examined_one_by_one_where_they_have_targets(tmp_path):
    scores = torch.tensor([[1.0, 0.0], [2.0, 1.0], [3.0, 0.5]])
    targets = torch.tensor([[1.0, 5.0], [2.0, NAN], [3.0, 4.0]])
    lengths = torch.tensor([[3.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    judgement = {"scores": scores, "targets": targets, "lengths": lengths}
    written, text = report_of(Judge(judgement, ["help", "safety"]), tmp_path)
    result = written["examination"]
    assert result["responses"] == 3
    result = result["objectives"]
    assert (result["help"]["accuracy"], result["help"]["pairs"]) == (1.0, 3)
    assert result["help"]["correlation"] == pytest.approx(1.0)
    assert result["help"]["length_correlation"] == pytest.approx(-1.0)
    assert (result["safety"]["accuracy"], result["safety"]["pairs"]) == (0.0, 1)
    assert any("help" in line and "100.0% of 3" in line for line in text.splitlines())
    assert any("safety" in line and "0.0% of 1" in line for line in text.splitlines())


def test_without_held_out_data_there_is_no_examination(tmp_path):
    written, text = report_of(Judge({}), tmp_path, held_out=None)
    assert "examination" not in written and "Right on" not in text
    assert not (tmp_path / "calibration.png").exists()
