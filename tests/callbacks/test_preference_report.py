"""The report of a preference run, by optimizer step and by evaluation."""

import json
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from rlmodules.callbacks import PreferenceReport


def trainer(fn=TrainerFn.FITTING, step=0, **metrics):
    return SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        accumulate_grad_batches=2,
        global_step=step,
        state=SimpleNamespace(fn=fn),
        callbacks=[],
        callback_metrics=metrics,
    )


def step(report, number, loss):
    """An optimizer step of two batches."""
    metrics = {"train/loss": loss, "time/examples_per_s": 4.0, "time/tokens_per_s": 90.0}
    module = SimpleNamespace(step_metrics=metrics | {"step": float(number)})
    for batch in (2 * number - 2, 2 * number - 1):
        report.on_train_batch_end(trainer(), module, None, None, batch)


def evaluate(report, number, fn=TrainerFn.FITTING, **metrics):
    run = trainer(fn, number, **{f"val/{name}": value for name, value in metrics.items()})
    report.on_validation_end(run, None)


def test_a_row_a_step_and_a_row_an_evaluation(tmp_path):
    report = PreferenceReport(tmp_path)
    evaluate(report, 99, TrainerFn.VALIDATING, loss=0.7)  # before the run: at step 0
    step(report, 1, 0.6)
    step(report, 2, 0.5)
    evaluate(report, 2, loss=0.4, accuracy=1.0)
    evaluate(report, 3)  # nothing is held out
    assert [row["train/loss"] for row in report.history] == [0.6, 0.5]
    assert [row["step"] for row in report.evaluations] == [0.0, 2.0]
    metrics = report.metrics()
    assert metrics["train/loss"] == [0.6, 0.5] and metrics["val/loss"] == [0.7, 0.4]
    assert metrics["val/accuracy"] == [1.0] and "step" not in metrics


def test_the_report_holds_every_evaluation_and_how_much_was_held_out(tmp_path):
    report = PreferenceReport(tmp_path)
    evaluate(report, 0, TrainerFn.VALIDATING, loss=0.7, accuracy=0.5)
    step(report, 1, 0.6)
    evaluate(report, 1, loss=0.4, accuracy=0.75)
    run = trainer(step=1)
    run.datamodule = SimpleNamespace(eval_dataset=range(100))
    report.on_train_end(run, None)
    written = json.loads((tmp_path / "report.json").read_text())
    assert [(row["step"], row["val/loss"]) for row in written["evaluations"]] == [
        (0, 0.7),
        (1, 0.4),
    ]
    assert written["held_out"] == 100
    text = (tmp_path / "report.html").read_text()
    assert "75.0% of the held-out pairs are ordered rightly (95% interval 65.7% to 82.5%" in text


@pytest.mark.parametrize(("drift", "warned"), [(-12.5, True), (3.0, False)])
def test_it_says_whether_chosen_responses_became_less_likely(drift, warned, tmp_path):
    report = PreferenceReport(tmp_path)
    evaluate(report, 0, accuracy=0.5)
    step(report, 1, 0.6)
    evaluate(report, 1, accuracy=0.75, chosen_drift=drift)
    report.on_train_end(trainer(), None)
    text = (tmp_path / "report.txt").read_text()
    assert ("12.5 nats each less likely" in text) == warned == ("less likely" in text)
    assert "1 optimizer steps" in text and "4.00 examples/s, 90 tokens/s" in text
    assert any("accuracy" in line and "+0.250" in line for line in text.splitlines())
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["before"] == {"val/accuracy": 0.5} and written["history"] == report.history


def test_a_checkpoint_keeps_steps_and_evaluations(tmp_path):
    report, other = PreferenceReport(tmp_path), PreferenceReport(tmp_path)
    step(report, 1, 0.6)
    evaluate(report, 1, loss=0.5)
    other.load_state_dict(report.state_dict())
    assert other.metrics() == report.metrics() and other.before == {"val/loss": 0.5}
