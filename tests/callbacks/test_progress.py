"""What the progress bars say where there is no terminal, and how much they say."""

from types import SimpleNamespace

import pytest

from rlmodules.callbacks import IterationBar, StepBar


def trainer(**attributes):
    settings = {
        "is_global_zero": True,
        "current_epoch": 0,
        "max_epochs": 3,
        "global_step": 0,
        "estimated_stepping_batches": 100,
        "num_training_batches": 8,
        "callback_metrics": {},
    }
    return SimpleNamespace(**settings | attributes)


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_an_iteration_is_one_line_with_the_metrics_there_are(capsys):
    bar, run = IterationBar(), trainer()
    bar.on_train_start(run, None)
    for epoch in range(3):
        run.current_epoch = epoch
        bar.on_train_epoch_start(run, None)
        bar.on_train_batch_end(run, None, None, None, 0)
        bar.on_validation_start(run, None)
        run.callback_metrics = {"rollout/reward": epoch + 0.25, "val/pass@1": 0.5, "other": 9.0}
    run.current_epoch = 3
    bar.on_train_end(run, None)
    assert lines(capsys) == [
        "iteration 1/3  reward 0.250  pass@1 0.500",
        "iteration 2/3  reward 1.250  pass@1 0.500",
        "iteration 3/3  reward 2.250  pass@1 0.500",
    ]


@pytest.mark.parametrize(("steps", "count"), [(100, 20), (7, 7)])
def test_steps_are_a_line_every_twentieth_of_them(steps, count, capsys):
    bar, run = StepBar(), trainer(estimated_stepping_batches=float(steps))
    run.callback_metrics = {"train/loss": 0.7}
    bar.on_train_start(run, None)
    for step in range(steps):
        run.global_step = step
        bar.on_train_batch_start(run, None, None, step)
    run.global_step = steps
    bar.on_train_end(run, None)
    output = lines(capsys)
    assert len(output) == count and output[-1] == f"step {steps}/{steps}  loss 0.700"


def test_a_resumed_run_begins_where_it_was_and_says_nothing_twice(capsys):
    bar, run = IterationBar(), trainer(current_epoch=2, callback_metrics={"rollout/reward": 1.0})
    bar.on_train_start(run, None)
    bar.on_train_epoch_start(run, None)
    assert lines(capsys) == []
    run.current_epoch = 3
    bar.on_train_end(run, None)
    bar.on_train_end(run, None)
    assert lines(capsys) == ["iteration 3/3  reward 1.000"]


@pytest.mark.parametrize("silence", ["another process", "disabled", "an exception before"])
def test_nothing_is_said_by_a_bar_that_is_off(silence, capsys):
    bar, run = IterationBar(), trainer(callback_metrics={"rollout/reward": 1.0})
    run.is_global_zero = silence != "another process"
    if silence == "disabled":
        bar.disable()
    bar.on_train_start(run, None)
    if silence == "an exception before":
        bar.on_exception(run, None, RuntimeError())
    run.current_epoch = 1
    bar.on_train_epoch_start(run, None)
    bar.on_train_end(run, None)
    assert lines(capsys) == []
