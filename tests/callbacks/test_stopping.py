"""Checkpoints that are whole or not there, and stopping between two optimizer steps.

That a stopped run goes on bit by bit is tested with the algorithms.
"""

import os
import signal
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from process_helpers import warm_python

from rlmodules.callbacks import AtomicCheckpointIO, SaveLast, newest_checkpoint
from rlmodules.callbacks.stopping import StoppedBySignal


def test_a_checkpoint_is_read_back_and_replaced(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    for number in (1.0, 2.0):
        io.save_checkpoint({"x": torch.tensor(number), "step": 3}, path)
        assert io.load_checkpoint(path) == {"x": torch.tensor(number), "step": 3}
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_a_save_that_fails_leaves_the_previous_checkpoint_alone(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        io.save_checkpoint({"step": threading.Lock()}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_is_no_checkpoint_is_refused_with_its_path(tmp_path):
    (tmp_path / "x.ckpt").write_text("no")
    with pytest.raises(ValueError, match=r"x\.ckpt' is no checkpoint of ours"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(FileNotFoundError):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "nowhere.ckpt")


def test_the_newest_checkpoint_is_the_last_that_was_written(tmp_path):
    paths = [tmp_path / day / "run" / "checkpoints" / "last.ckpt" for day in ("b", "a", "c")]
    half = tmp_path / "d" / "checkpoints" / ".last.ckpt.xyz.partial" / "last.ckpt"
    for age, path in enumerate([half, *paths]):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_checkpoint(tmp_path) == paths[0]


def test_no_checkpoint_to_resume_is_said_with_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="ckpt_path=last"):
        newest_checkpoint(tmp_path)


SAVER = """
import sys, torch
from rlmodules.callbacks import AtomicCheckpointIO
io, i = AtomicCheckpointIO(), 0
print("ready", flush=True)
while True:
    i += 1
    io.save_checkpoint({"i": i, "x": torch.full((2_000_000,), float(i))}, sys.argv[1])
"""


def test_a_kill_during_a_save_never_loses_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    process = subprocess.Popen(
        [warm_python(ours=True), "-c", SAVER, str(path)], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["x"].unique().tolist() == [float(checkpoint["i"])]


# -------------------------------------------------------------------------- signals


class Trainer(SimpleNamespace):
    """What SaveLast asks a Trainer: one process, 4 batches an epoch, 2 a step, 3 epochs."""

    def __init__(self, epochs_begun=2, batch_idx=1, done=False, **attributes):
        settings = {"world_size": 1, "accumulate_grad_batches": 2, "num_training_batches": 4}
        settings |= {"current_epoch": 1, "max_epochs": 3, "max_steps": -1, "global_step": 3}
        settings |= {"is_global_zero": True, "should_stop": False, "callbacks": []}
        progress = SimpleNamespace(current=SimpleNamespace(ready=epochs_begun, processed=1))
        loop = SimpleNamespace(epoch_progress=progress, batch_idx=batch_idx, done=done)
        super().__init__(saved=[], fit_loop=loop, **settings | attributes)

    def save_checkpoint(self, path):
        self.saved.append(path)
        path.touch()


@pytest.fixture
def stop(tmp_path):
    """A callback whose handlers stand in for pytest's."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop = SaveLast(tmp_path)
    stop.on_train_start(Trainer(), None)
    yield stop
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_obeyed_once_the_optimizer_step_is_done(stop, number):
    run = Trainer()
    os.kill(os.getpid(), number)
    stop.on_train_batch_end(run, None, None, None, 0)  # within a step
    stop.on_train_batch_end(run, None, None, None, 3)  # the epoch has its own work to do
    with pytest.raises(StoppedBySignal) as stopped:
        stop.on_train_batch_end(run, None, None, None, 1)
    assert stopped.value.code == 128 + number
    with pytest.raises(StoppedBySignal):
        stop.on_validation_batch_end(run, None, None, None, 0)
    with pytest.raises(StoppedBySignal):
        stop.on_train_epoch_end(Trainer(batch_idx=3), None)


def test_without_a_signal_nothing_stops(stop):
    stop.on_train_batch_end(Trainer(), None, None, None, 1)
    stop.on_validation_batch_end(Trainer(), None, None, None, 0)
    stop.on_train_epoch_end(Trainer(batch_idx=3), None)


def test_what_is_left_to_write_is_written_in_spite_of_a_signal(stop, capsys):
    run = Trainer(batch_idx=3, current_epoch=2)
    stop.on_train_epoch_end(run, None)
    assert run.saved == [stop.path]
    os.kill(os.getpid(), signal.SIGTERM)
    assert "Finishing what is left to write" in capsys.readouterr().out
    assert run.saved == [stop.path]


def test_a_run_with_nothing_left_to_train_is_saved_before_the_rest_of_it(stop):
    run = Trainer(done=True)
    stop.on_train_start(run, None)
    assert run.saved == [stop.path]


def test_a_second_ctrl_c_stops_at_once_and_unsaved_and_says_so(stop, capsys):
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    run = Trainer()
    stop.on_exception(run, None, KeyboardInterrupt())
    assert run.saved == []
    assert "without saving" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("exception", "attributes", "saves"),
    [
        (StoppedBySignal(143), {}, True),
        (StoppedBySignal(143, epoch_ended=True), {"epochs_begun": 1}, True),
        (ConnectionError("the scorer is away"), {}, True),
        (ConnectionError("the epoch's end is half done"), {"epochs_begun": 1}, False),
        (ConnectionError("one process failed alone"), {"world_size": 2}, False),
        (StoppedBySignal(143), {"world_size": 2}, True),
    ],
)
def test_what_ends_a_run_leaves_a_checkpoint(stop, exception, attributes, saves, capsys):
    run = Trainer(**attributes)
    stop.on_exception(run, None, exception)
    assert run.saved == ([stop.path] if saves else [])
    assert ("ckpt_path=" in capsys.readouterr().out) == saves
    stop.on_exception(run, None, exception)
    assert len(run.saved) == saves, "the same is not written twice"


def test_before_training_there_is_nothing_to_save(tmp_path, capsys):
    run = Trainer()
    SaveLast(tmp_path).on_exception(run, None, ConnectionError("while evaluating"))
    assert run.saved == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "saves"),
    [
        ({}, False),
        ({"every_n_train_steps": 3}, True),
        ({"every_n_train_steps": 2}, False),
        ({"max_steps": 3}, True),
        ({"should_stop": True}, True),
    ],
)
def test_a_step_is_saved_if_it_is_due_or_the_last(tmp_path, changes, saves):
    interval = {k: v for k, v in changes.items() if k == "every_n_train_steps"}
    save = SaveLast(tmp_path, **interval)
    run = Trainer(**{k: v for k, v in changes.items() if k not in interval})
    save.on_train_batch_end(run, None, None, None, 1)
    assert run.saved == ([save.path] if saves else [])


@pytest.mark.parametrize(
    ("options", "changes", "saves"),
    [
        ({}, {}, False),
        ({}, {"current_epoch": 2}, True),
        ({}, {"should_stop": True}, True),
        ({}, {"should_stop": True, "batch_idx": 1}, False),  # cut short: saved after its step
        ({"every_n_epochs": 2}, {}, True),
        ({"every_n_epochs": 3}, {}, False),
        ({"every_n_train_steps": 3}, {}, True),
    ],
)
def test_an_epoch_is_saved_if_it_is_due_or_the_last(tmp_path, options, changes, saves):
    save, run = SaveLast(tmp_path, **options), Trainer(**{"batch_idx": 3} | changes)
    save.on_train_epoch_end(run, None)
    assert run.saved == ([save.path] if saves else [])
