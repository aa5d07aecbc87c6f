"""A run that is killed and goes on: each tracker has each row once, and none is lost."""

import csv
import multiprocessing
import time
from pathlib import Path

import pytest
from tracker_helpers import SignalAt, csv_rows, scalars, steady, tensorboard

from rlmodules.trackers.csv_log import CSVLog
from rlmodules.trackers.identity import hand_back, id_of, note, take_over
from rlmodules.trackers.mlflow import MLflow
from rlmodules.trackers.tensorboard import TensorBoard

KILLED = [  # what a run logged before it was killed: held out and training at 2, then at 3
    (2, {"iteration": 1.0, "val/reward": 0.5}),
    (2, {"iteration": 1.0, "train/loss": 0.25}),
    (3, {"iteration": 2.0, "train/loss": 0.125}),
]
AGAIN = [*KILLED[2:], (4, {"iteration": 2.0, "train/loss": 0.0625})]
WHOLE = [*KILLED, AGAIN[-1]]


def log(tracker, rows):
    for step, row in rows:
        tracker.log_metrics(row, step)


def written(folder):
    rows = [(int(row.pop("step")), row) for row in csv_rows(folder)]
    return rows


@pytest.mark.parametrize("torn", ["", "5,3.0"])
@pytest.mark.parametrize("over, again", [(2, AGAIN), (2, [*KILLED[:1], *AGAIN]), (1, WHOLE)])
def test_a_csv_file_has_each_row_once(tmp_path, over, again, torn):
    log(CSVLog(tmp_path / "csv"), KILLED)
    with (tmp_path / "csv" / "metrics.csv").open("a") as file:
        file.write(torn)  # by a kill
    tracker = CSVLog(tmp_path / "csv")
    tracker.go_on({"step": over})
    log(tracker, again)
    assert sorted(map(str, written(tmp_path))) == sorted(map(str, WHOLE))


def test_a_csv_file_takes_new_columns_and_begins_with_the_axes(tmp_path):
    tracker = CSVLog(tmp_path / "csv")
    log(tracker, KILLED)
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["step", "iteration", "train/loss", "val/reward"]
    assert written(tmp_path) == KILLED
    log(CSVLog(tmp_path / "csv"), KILLED[:1])  # another run, in a notebook
    assert written(tmp_path) == KILLED[:1]


@pytest.mark.parametrize(("x_axis", "points"), [("step", [2, 3, 4]), ("iteration", [1, 2, 2])])
def test_tensorboard_has_each_row_once(tmp_path, x_axis, points):
    def tracker():
        return TensorBoard(tmp_path, x_axis=x_axis)

    before = tracker()
    log(before, KILLED)
    before.end("failed")
    name_as_if_created_in(tmp_path, int(time.time()))
    after = tracker()
    after.go_on({"step": 2, "iteration": 1.0})
    log(after, AGAIN)
    after.end("done")
    found = tensorboard(tmp_path)
    assert scalars(found, "train/loss") == list(zip(points, [0.25, 0.125, 0.0625], strict=True))
    assert scalars(found, "val/reward") == [(points[0], 0.5)]


def name_as_if_created_in(folder, second):
    """Its one event file, by a host whose name sorts behind this one's."""
    (file,) = folder.glob("events.*")
    return file.rename(folder / f"events.out.tfevents.{second:010d}.zzz.9.9")


def test_tensorboard_says_that_the_clock_is_behind_an_earlier_file(tmp_path):
    TensorBoard(tmp_path).experiment.close()
    file = name_as_if_created_in(tmp_path, int(time.time()) + 90)
    with pytest.warns(UserWarning, match=f"clock is 9[01] s behind {file}:"):
        TensorBoard(tmp_path).go_on({"step": 2})


def test_mlflow_has_each_row_once(tmp_path):
    log(MLflow(tmp_path, tmp_path, run_name="one"), KILLED)
    tracker = MLflow(tmp_path, tmp_path)
    tracker.go_on({"step": 2})
    log(tracker, AGAIN)
    tracker.end("done")
    client = tracker.experiment
    history = client.get_metric_history(tracker.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(2, 0.25), (3, 0.125), (4, 0.0625)]


def begin_run(folder, number):
    tracker = MLflow(folder / str(number), folder, run_name=str(number), group="the/sweep")
    tracker.log_hyperparams({"algo": {"model_name": "x" * 9000}})
    tracker.log_metrics({"val/pass@1": float(number)}, 0)
    tracker.end("stopped")


def test_jobs_that_create_mlflows_file_at_once_all_live_below_their_sweep(tmp_path):
    import mlflow  # noqa: F401  # once, for all

    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=begin_run, args=(tmp_path, n)) for n in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    tracker = MLflow(tmp_path / "0", tmp_path)
    client = tracker.experiment
    experiment = client.get_run(tracker.run_id).info.experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert runs.keys() == {"0", "1", "2", "the/sweep"}
    sweep = runs.pop("the/sweep").info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {sweep}
    assert runs["2"].data.metrics == {"val/pass_at_1": 2.0} and runs["2"].info.status == "KILLED"
    value = runs["2"].data.params["algo.model_name"]
    assert len(value) == 6000 and value.endswith("(all 9000 characters: artifact config.yaml)")
    whole = client.download_artifacts(runs["2"].info.run_id, "config.yaml", str(tmp_path))
    assert "x" * 9000 in Path(whole).read_text()


def test_ids_go_with_the_first_run_that_goes_on_and_rows_with_each(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    note(first, wandb="a")
    log(CSVLog(first / "csv"), KILLED)
    for folder in (second, third):
        take_over(first / "checkpoints" / "last.ckpt", folder)
        assert written(folder) == KILLED
    assert (id_of(second, "wandb"), id_of(third, "wandb")) == ("a", None)
    take_over(first / "checkpoints" / "last.ckpt", second)  # once more
    assert id_of(second, "wandb") == "a"
    hand_back(first / "checkpoints" / "last.ckpt", second)  # it was complete
    take_over(first / "checkpoints" / "last.ckpt", third)
    assert id_of(third, "wandb") == "a"


DPO = ["algo=dpo", "model=tiny", "algo.device=cpu", "trainer.precision=32-true", "logger=csv"]
DPO += ["data.eval_size=4", "algo.num_epochs=1", "algo.eval_every=3", "algo.batch_size=16"]
DPO += ["algo.gradient_accumulation_steps=2", "~callbacks.export", "~callbacks.best"]


def test_the_row_of_a_step_in_which_a_signal_comes_is_logged(command, tmp_path):
    stop = f"+callbacks.stop={{_target_:tracker_helpers.{SignalAt.__name__},step:2}}"
    command(*DPO, f"hydra.run.dir={tmp_path}/whole")
    command(*DPO, stop, f"hydra.run.dir={tmp_path}/begun", status=143)
    before = csv_rows(tmp_path / "begun")
    assert [row["step"] for row in before] == [0, 1, 2]
    more = [f"ckpt_path={tmp_path}/begun", f"hydra.run.dir={tmp_path}/begun"]
    command(*DPO, *more)
    whole, resumed = (steady(csv_rows(tmp_path / name)) for name in ("whole", "begun"))
    assert resumed == whole and {"examples", "tokens", "epoch"} <= whole[-1].keys()
    trained = [row for row in whole if "train/loss" in row]
    assert [row["examples"] for row in trained[:4]] == [32, 64, 96, 128]
    assert trained[-1]["epoch"] == 1.0
