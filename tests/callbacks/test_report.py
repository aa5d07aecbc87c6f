"""The report of an online run: what is noted, what is written, what a terminal shows."""

import json
from types import SimpleNamespace

import pytest

from rlmodules.callbacks import RunReport, SampleTable
from rlmodules.functional.statistics import mcnemar_p


def trainer(*callbacks, **metrics):
    return SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        global_step=8,
        num_training_batches=4,
        fit_loop=SimpleNamespace(batch_idx=3),
        callbacks=list(callbacks),
        callback_metrics=dict(metrics),
        lightning_module=None,
    )


def module(**solved):
    return SimpleNamespace(held_out=SimpleNamespace(solved=solved.get("solved", {})))


def iteration(report, run, number, score, **held_out):
    """One iteration as Lightning's hooks tell of it, with an evaluation where there are metrics."""
    training = {"iteration": float(number), "rollout/reward": score, "rollout/kl_coef": 0.2}
    speeds = {"time/rollout_tokens_per_s": 50.0, "time/update_tokens_per_s": 70.0}
    run.callback_metrics |= training | speeds | {f"val/{k}": v for k, v in held_out.items()}
    if held_out:
        report.on_validation_end(run, module())
    report.on_train_epoch_end(run, module())


def test_held_out_metrics_stand_only_in_the_rows_of_iterations_that_were_evaluated(tmp_path):
    report, run = RunReport(tmp_path), trainer()
    iteration(report, run, 1, 0.1)
    iteration(report, run, 2, 0.2, reward=0.5)
    iteration(report, run, 3, 0.3)
    assert [row["rollout/reward"] for row in report.history] == [0.1, 0.2, 0.3]
    assert [row.get("val/reward") for row in report.history] == [None, 0.5, None]
    metrics = report.metrics()
    assert metrics["rollout/reward"] == [0.1, 0.2, 0.3] and metrics["val/reward"] == [0.5]


def test_the_first_and_the_last_evaluation_are_compared(tmp_path, capsys):
    report, run = RunReport(tmp_path), trainer(**{"val/reward": 0.25, "val/pass@4": 0.5})
    report.on_validation_end(run, module())
    iteration(report, run, 1, 0.1, **{"reward": 0.75, "pass@4": 0.25})
    report.on_train_end(run, module())
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["before"] == {"val/reward": 0.25, "val/pass@4": 0.5}
    assert written["after"] == {"val/reward": 0.75, "val/pass@4": 0.25}
    assert written["history"] == report.history and "mcnemar_p" not in written
    text = (tmp_path / "report.txt").read_text()
    for part in (text, capsys.readouterr().out):
        (reward,) = (line for line in part.splitlines() if line.startswith("│ reward"))
        assert "0.750" in reward and "+0.500" in reward
        assert any("pass@4" in line and "-0.250" in line for line in part.splitlines())
    assert "1 iterations" in text and "50 tokens/s sampled" in text
    assert (
        "KL coefficient 0.2000" in text.replace("\n", "") and str(tmp_path / "curves.png") in text
    )
    assert "checkpoints" not in text  # a place is named if it is there


def test_problems_solved_before_and_after_are_tested(tmp_path):
    report, run = RunReport(tmp_path), trainer()
    before, between = dict.fromkeys(range(20), False), dict.fromkeys(range(20), True)
    after = {i: i < 12 for i in range(20)}
    for solved in (before, between, after):
        report.on_validation_end(run, module(solved=solved))
    iteration(report, run, 1, 0.1)
    report.on_train_end(run, module())
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["solved_before"], written["solved_after"], written["problems"]) == (0, 12, 20)
    assert written["mcnemar_p"] == mcnemar_p(before, after) < 0.001
    assert "0 right before (0.0%), 12 after" in (tmp_path / "report.txt").read_text()


def test_samples_are_shown_as_they_are_once_a_prompt(tmp_path):
    samples = SampleTable(tmp_path)
    row = {"prompt": "[bold]p[/]", "response": "old [/red]", "reward": 0.0}
    samples.before = [row, row | {"response": "second attempt"}]
    samples.latest = [row | {"response": "new \x1b[31m\x9b\x07né", "reward": 1.0}, row]
    report, run = RunReport(tmp_path), trainer(samples)
    iteration(report, run, 1, 0.1)
    report.on_train_end(run, module())
    text = (tmp_path / "report.txt").read_text()
    assert "[bold]p[/]" in text and "old [/red]" in text and "new [31mné" in text
    assert "second attempt" not in text and not set("\x1b\x9b\x07") & set(text)


def test_a_checkpoint_keeps_all_of_it(tmp_path):
    report, other, run = RunReport(tmp_path), RunReport(tmp_path), trainer()
    report.on_validation_end(run, module(solved={1: False}))
    iteration(report, run, 1, 0.1, reward=0.5)
    other.load_state_dict(report.state_dict())
    report.on_validation_end(run, module(solved={1: True}))
    other.on_validation_end(run, module(solved={1: True}))
    assert other.state_dict() == report.state_dict()
    assert other.details(run, None)["solved_after"] == 1


@pytest.mark.parametrize("reason", ["no iteration", "another process"])
def test_without_something_to_report_nothing_is_written(reason, tmp_path):
    report, run = RunReport(tmp_path / "run"), trainer()
    if reason == "another process":
        iteration(report, run, 1, 0.1)
        run.is_global_zero = False
    report.on_train_end(run, module())
    assert not (tmp_path / "run").exists()


def test_a_sanity_check_is_no_evaluation(tmp_path):
    report, run = RunReport(tmp_path), trainer(**{"val/reward": 0.5})
    run.sanity_checking = True
    report.on_validation_end(run, module(solved={1: True}))
    assert report.before == {} and report.details(run, None) == {}


def test_a_notebook_shows_the_report_once_and_the_file_holds_it_too(tmp_path, monkeypatch):
    """In a kernel rich shows whatever it prints, even to a file, and writes nothing."""
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    report, run = RunReport(tmp_path), trainer()
    iteration(report, run, 1, 0.1, reward=0.5)
    report.on_train_end(run, module())
    written = (tmp_path / "report.txt").read_text()
    assert "last training reward 0.100" in " ".join(written.split())
    assert sum("training reward" in text for text in shown) == 1
