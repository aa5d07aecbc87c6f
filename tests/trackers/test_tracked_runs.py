"""One run that goes on from another, in every tracker at once, read back from each."""

import json
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import yaml
from tracker_helpers import (
    comet_messages,
    csv_rows,
    scalars,
    tensorboard,
    texts,
    wandb_runs,
)

from rlmodules.trackers.rows import AXES

SMOKE = ["experiment=smoke", "algo.device=cpu", "trainer.precision=32-true", "algo.ppo_epochs=1"]
PROJECT = f"test-{uuid.uuid4().hex}"


def call(*overrides):
    import train

    sys.argv = ["train.py", *overrides]
    train.main()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run of one iteration and of the one that goes on from it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tracked")
        patch.chdir(folder)
        patch.setattr(sys, "argv", sys.argv)
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # read when it is imported
        told = [
            *SMOKE,
            "logger=[many,trackio,comet]",
            f"logger.trackio.project={PROJECT}",
            "algo.learning_rate=1e-4",
            "seed=3",
        ]
        call(*told, "algo.num_iterations=1", "hydra.run.dir=outputs/first")
        more = ["ckpt_path=outputs/first", "algo.num_iterations=2"]
        call(*told, *more, "hydra.run.dir=outputs/second")
        yield folder / "outputs/first", folder / "outputs/second"


SAMPLED = ["prompt", "response", "reward", "kl"]
AXES_OF_PPO = ["step", "iteration", "episodes", "tokens"]
TOLD = ["device", "ppo_epochs", "learning_rate", "num_iterations"]
NAME = "experiment=smoke,device=cpu,ppo_epochs=1,learning_rate=1e-4,seed=3,num_iterations=1"
ROWS = [  # step, iteration, episodes, tokens; held out or not
    (0, 0, 0, 0, True),
    (2, 1, 16, 128, True),
    (2, 1, 16, 128, False),
    (4, 2, 32, 256, True),
    (4, 2, 32, 256, False),
]
SHOWN = [(step, iteration) for step, iteration, *_, held_out in ROWS if held_out]


def same(points, others):
    """Whether points agree, of which one side was kept as 32 bits."""
    return np.asarray(points) == pytest.approx(np.asarray(others), rel=1e-6)


def kinds(rows):
    return [
        (r["step"], r["iteration"], r["episodes"], r["tokens"], "val/reward" in r) for r in rows
    ]


def test_the_csv_file_goes_on_in_the_second_folder(runs):
    first, second = (csv_rows(folder) for folder in runs)
    assert kinds(first) == ROWS[:3] and kinds(second) == ROWS
    assert second[:3] == first
    assert all(("rollout/reward" in row) != ("val/reward" in row) for row in second)


def test_tensorboard_has_the_same_rows_texts_and_settings_once(runs):
    _, second = runs
    found = tensorboard(second / "tensorboard")
    rows = csv_rows(second)
    for name in ("val/reward", "train/loss", "rollout/kl"):
        points = [(row["step"], row[name]) for row in rows if name in row]
        assert same(scalars(found, name), points), name
    assert scalars(found, "iteration") == [(0, 0), (2, 1), (4, 2)]
    shown = texts(found, "samples")
    assert [step for step, _ in shown] == [step for step, _ in SHOWN]
    assert shown[0][1].startswith("| prompt | response | reward | kl |\n| --- |")
    assert len(shown[0][1].splitlines()) == 2 + 4
    ((_, settings),) = texts(found, "settings")
    assert yaml.safe_load(settings.replace("\n    ", "\n").strip())["algo"]["learning_rate"] == 1e-4


def test_tensorboards_hparams_begin_with_what_was_told_and_end_with_the_result(runs):
    from tensorboard.plugins.hparams import plugin_data_pb2

    _, second = runs
    found = tensorboard(second / "tensorboard")
    contents = found.SummaryMetadata("_hparams_/experiment").plugin_data.content
    experiment = plugin_data_pb2.HParamsPluginData.FromString(contents).experiment
    names = [info.name for info in experiment.hparam_infos]
    first = [info.name for info in experiment.hparam_infos if info.differs]
    assert sorted(first) == sorted([f"algo.{name}" for name in TOLD] + ["seed"])
    assert len(names) == len(set(names)) and "algo.batch_size" in names
    assert [info.name.tag for info in experiment.metric_infos] == ["hp_metric"]
    last = csv_rows(second)[-2]["val/reward"]
    assert same(scalars(found, "hp_metric")[-1:], [(4, last)])


def test_weights_and_biases_knows_both_as_one_run(runs):
    first, second = ((run,) for folder in runs for run in wandb_runs(folder))
    assert first[0].run.run_id == second[0].run.run_id
    (before,), (after,) = first, second
    assert before.run.display_name == NAME and list(before.run.tags) == ["ppo", "tiny", "text"]
    assert before.run.project == "rlmodules" and before.status == after.status == 0
    told = [key for key in before.config if key != "_wandb"]
    assert sorted(told) == sorted(yaml.safe_load((runs[0] / "config.yaml").read_text()))
    assert before.axes["*"] == "step" and set(AXES) <= before.axes.keys()
    rows = [row for row in before.rows + after.rows if "samples" not in row]
    assert kinds(rows) == ROWS
    tables = [row for row in before.rows + after.rows if "samples" in row]
    assert [(row["step"], row["iteration"]) for row in tables] == SHOWN
    assert tables[0]["samples"]["nrows"] == 4 and tables[0]["samples"]["ncols"] == 4


def test_mlflow_has_parameters_whole_settings_and_a_table(runs, tmp_path):
    from mlflow import MlflowClient

    first, second = runs
    client = MlflowClient(f"sqlite:///{first.parent}/mlflow/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "rlmodules")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (NAME, "FINISHED")

    def download(name):
        return client.download_artifacts(run.info.run_id, name, str(tmp_path))

    said = {"algo": "ppo", "model": "tiny", "env": "text", "resumed.algo.num_iterations": "2"}
    assert said.items() <= run.data.tags.items()
    assert run.data.params["algo.learning_rate"] == "0.0001"
    assert run.data.params["algo.num_iterations"] == "1"
    for name in ("val/reward", "train/loss", "iteration", "tokens"):
        history = client.get_metric_history(run.info.run_id, name)
        wanted = {row["step"]: row[name] for row in csv_rows(second) if name in row}
        assert {m.step: m.value for m in history} == wanted and len(history) == len(wanted)
    table = json.loads(Path(download("samples.json")).read_text())
    assert table["columns"] == ["step", *SAMPLED, *AXES_OF_PPO[1:]]
    at = {(row[0], row[5]) for row in table["data"]}
    assert sorted(at) == SHOWN and len(table["data"]) == 12
    for name, iterations in (("config.yaml", 1), ("resumed/config.yaml", 2)):
        whole = yaml.safe_load(Path(download(name)).read_text())
        assert whole["algo"]["num_iterations"] == iterations


def test_trackio_goes_on_by_its_name(runs):
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(PROJECT)
    assert run.name == NAME and run.config["algo"]["learning_rate"] == 1e-4
    assert run.config["tags"] == {"algo": "ppo", "model": "tiny", "env": "text"}
    logs = SQLiteStorage.get_logs(PROJECT, run.name, run_id=run.id)
    rows = [row for row in logs if "samples" not in row]
    assert kinds(rows) == ROWS
    tables = [row for row in logs if "samples" in row]
    assert [(row["step"], row["iteration"]) for row in tables] == SHOWN
    assert tables[0]["samples"]["_value"][0].keys() == {"prompt", "response", "reward", "kl"}


def test_comet_goes_on_by_its_key(runs):
    keys = {json.loads((folder / "trackers.json").read_text())["comet"] for folder in runs}
    assert len(keys) == 1
    first, second = (list(comet_messages(folder)) for folder in runs)
    points = [m["payload"]["metric"] for m in first + second if m["type"] == "metric_msg"]
    rewards = [(p["step"], p["metricValue"]) for p in points if p["metricName"] == "val/reward"]
    wanted = [(row["step"], row["val/reward"]) for row in csv_rows(runs[1]) if "val/reward" in row]
    assert rewards == wanted


def test_what_a_run_is_called_can_be_told(tmp_path):
    from hydra import compose, initialize
    from omegaconf import OmegaConf

    from rlmodules import schemas

    schemas.register()
    said = ["run.name=mine", "run.group=ours", "run.tags.model=small", "+run.tags.who=me"]
    with initialize("../../conf", version_base="1.3"):
        cfg = compose("train", ["logger=[many,trackio,comet]", *said])
    loggers = OmegaConf.to_container(cfg.logger)
    for tracker in ("wandb", "mlflow", "trackio", "comet"):
        names = [value for key, value in loggers[tracker].items() if key in ("name", "run_name")]
        assert names == ["${run.name}"] and loggers[tracker]["group"] == "${run.group}"
        assert loggers[tracker]["tags"] == "${run.tags}"
    run = OmegaConf.to_container(cfg.run, resolve=True)
    assert (run["name"], run["group"]) == ("mine", "ours")
    assert (run["tags"]["model"], run["tags"]["who"]) == ("small", "me")


def test_a_config_that_is_only_composed_names_no_run_whatever_was_composed_before(monkeypatch):
    """Hydra's own config of another composition stays behind in the process, without a folder."""
    from hydra import compose, initialize
    from hydra.core.hydra_config import HydraConfig

    from rlmodules import schemas

    schemas.register()
    with initialize("../../conf", version_base="1.3"):
        whole = compose("train", return_hydra_config=True)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", whole)
        assert HydraConfig.initialized()
        cfg = compose("train", ["run.tags.model=small"])
        assert cfg.run.tags.algo is None and cfg.run.name is None
        assert cfg.run.tags.model == "small"
