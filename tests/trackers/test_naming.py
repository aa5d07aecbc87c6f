"""What trackers call a run, how they end, and what they refuse."""

import importlib.util
import json
from types import SimpleNamespace

import pytest

from rlmodules.callbacks import RunIsComplete
from rlmodules.trackers.comet import Comet
from rlmodules.trackers.identity import FILE, note
from rlmodules.trackers.mlflow import MLflow
from rlmodules.trackers.naming import group_of, name_of, swept_by, tag_of
from rlmodules.trackers.rows import Once, tracked
from rlmodules.trackers.tensorboard import TensorBoard, cell
from rlmodules.trackers.trackio import Trackio
from rlmodules.trackers.wandb import WandB


def test_alone_a_run_is_called_by_what_it_was_told(tmp_path):
    told = ["algo=dpo", "algo.learning_rate=3e-5", "logger=wandb", "trainer=ddp", "~callbacks.best"]
    assert name_of(tmp_path, told, "dpo", in_sweep=False) == "algo=dpo,learning_rate=3e-5"
    assert name_of(tmp_path, ["logger=wandb"], "dpo", in_sweep=False) == "dpo"
    assert name_of(tmp_path, ["+env.x=a=b"], "dpo", in_sweep=False) == "x=a=b"
    long = name_of(tmp_path, [f"env.path={'x' * 300}"], "dpo", in_sweep=False)
    assert len(long) == 120 and long.endswith("…")
    assert group_of(tmp_path, in_sweep=False) is None
    assert swept_by(tmp_path, told) == ["algo", "algo.learning_rate"]


def test_a_job_is_called_by_its_folder_and_grouped_by_its_sweep(tmp_path):
    sweep = tmp_path / "multirun" / "2026-11-26" / "01-02-03"
    job = sweep / "lr=3e-5,seed=1"
    job.mkdir(parents=True)
    (job / "job.json").write_text(json.dumps({"swept": {"algo.learning_rate": 3e-5, "seed": 1}}))
    assert name_of(job, ["algo=ppo"], "ppo", in_sweep=False) == "lr=3e-5,seed=1"
    assert group_of(job, in_sweep=False) == "2026-11-26/01-02-03"
    assert swept_by(job, ["algo=ppo"]) == ["algo.learning_rate", "seed"]
    (sweep / "multirun.yaml").touch()
    inner = job / "deeper"
    assert name_of(inner, [], "ppo", in_sweep=True) == "lr=3e-5,seed=1/deeper"
    assert group_of(inner, in_sweep=True) == "2026-11-26/01-02-03"


def test_tags_are_short():
    assert tag_of("google/gemma-2-2b") == "gemma-2-2b" and tag_of("/a/b/") == "b"
    assert len(tag_of("x" * 100)) == 64


def test_an_axis_is_logged_once_a_step():
    once = Once()
    assert once.of({"tokens": 1.0, "val/a": 2.0}, 0) == {"tokens": 1.0, "val/a": 2.0}
    assert once.of({"tokens": 1.0, "train/a": 2.0}, 0) == {"train/a": 2.0}
    assert once.of({"tokens": 1.0}, 1) == {"tokens": 1.0}


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "done"),
        (ValueError("no"), "failed"),
        (SystemExit(143), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (RunIsComplete("it is"), "done"),
    ],
)
def test_trackers_end_their_run_whatever_ends_it(tmp_path, error, how):
    told = []
    logger = SimpleNamespace(log_hyperparams=told.append, end=told.append)
    trainer = SimpleNamespace(
        is_global_zero=True, loggers=[logger, SimpleNamespace(**vars(logger))]
    )
    note(tmp_path / "before", wandb="a")

    def run():
        with tracked(trainer, {"a": 1}, tmp_path / "here", tmp_path / "before/checkpoints/x.ckpt"):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            run()
    else:
        run()
    assert told == [{"a": 1}, {"a": 1}, how, how]
    went_on = "continued_in" in json.loads((tmp_path / "before" / FILE).read_text())
    assert went_on == (not isinstance(error, RunIsComplete))


def test_a_run_that_is_refused_before_its_first_row_leaves_nothing(tmp_path):
    trackers = [
        WandB(tmp_path / "a"),
        MLflow(tmp_path / "b", tmp_path / "c"),
        Trackio(tmp_path / "d", tmp_path / "e"),
        Comet(tmp_path / "f"),
        TensorBoard(tmp_path / "g"),
    ]
    for tracker in trackers:
        tracker.log_hyperparams({"seed": 1})
        tracker.end("failed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("mlflow", "mlflow", lambda: MLflow("a", "b")),
        ("trackio", "trackio", lambda: Trackio("a", "b")),
        ("comet_ml", "comet", lambda: Comet("a")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, module, extra, make):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"logger={extra} needs .* {module},") as refused:
        make()
    assert f'pip install "rlmodules[{extra}]"' in str(refused.value)


def test_an_axis_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"logger\.tensorboard\.x_axis='epoch' must be one of"):
        TensorBoard(tmp_path, x_axis="epoch")
    with pytest.raises(ValueError, match=r"logger\.wandb\.x_axis='steps' must be one of"):
        WandB(tmp_path, x_axis="steps")
    with pytest.raises(ValueError, match="is not counted by this run, which counts step, tokens"):
        TensorBoard(tmp_path, x_axis="examples").log_metrics({"tokens": 1.0, "train/loss": 2.0}, 1)


def test_what_a_model_writes_is_no_markdown():
    assert cell("a|b\n<b>*c*\r\x1c") == r"a\|b ⏎ &lt;b>\*c\*··" and cell(0.123456) == "0.1235"
