"""What is typed, and what a job is started with."""

import sys
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from rlmodules.schemas import explain, quote_paths
from rlmodules.sweeping.apart import refuse_shared_process
from rlmodules.sweeping.commands import HERE, program


def hydra(*overrides, choices=None, sources=(), name="train", mode="MULTIRUN"):
    from hydra.types import RunMode

    return OmegaConf.create(
        {
            "mode": RunMode[mode],
            "job": {"config_name": name},
            "overrides": {"hydra": list(overrides)},
            "runtime": {"config_sources": list(sources), "choices": choices or {}},
        }
    )


def test_a_job_is_started_with_what_is_not_about_the_sweep():
    about = ["hydra.mode=MULTIRUN", "hydra/launcher=joblib", "hydra.sweep.dir=x"]
    about += ["++hydra.launcher.slots=2", "hydra.sweeper.params={}", "hydra/sweeper=grid"]
    assert program(hydra(*about)) == [str(HERE / "train.py")]
    assert program(hydra(*about, "hydra.job.chdir=true"))[1:] == ["hydra.job.chdir=true"]


def test_a_job_finds_the_configs_that_the_sweep_finds():
    main = {"provider": "main", "schema": "file", "path": str(HERE / "conf")}
    added = {"provider": "command-line", "schema": "file", "path": "/mine"}
    assert program(hydra(sources=[main])) == [str(HERE / "train.py")]
    assert program(hydra(sources=[main, added], name="other"))[1:] == [
        "--config-dir",
        "/mine",
        "--config-name",
        "other",
    ]
    assert program(hydra(sources=[main | {"path": "/all"}]))[1:] == ["--config-path", "/all"]
    package = {"provider": "main", "schema": "pkg", "path": "rlmodules.conf"}
    assert len(program(hydra(sources=[package]))) == 1


def test_in_a_wheel_a_job_is_started_as_a_module(monkeypatch, tmp_path):
    monkeypatch.setattr("rlmodules.sweeping.commands.HERE", tmp_path)
    assert program(hydra()) == ["-m", "rlmodules.train"]


def test_files_that_are_there_are_quoted_and_all_else_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("lr=3e-5,seed=1", "plain", "a b"):
        Path(name).mkdir()
    assert quote_paths(
        ["ckpt_path=lr=3e-5,seed=1", "ckpt_path=plain", "data.path=a b", "+x=a b", "-m"]
    ) == ['ckpt_path="lr=3e-5,seed=1"', "ckpt_path=plain", 'data.path="a b"', '+x="a b"', "-m"]
    same = ["seed=0,1", "x=", "algo=ppo", "x=[plain,plain]", 'ckpt_path="lr=3e-5,seed=1"']
    assert quote_paths(same) == same and quote_paths(["--config-dir=a b"]) == ["--config-dir=a b"]


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("joblib", "joblib"), ("submitit_slurm", "submitit"), ("submitit_local", "submitit")],
)
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher, extra):
    missing = MissingConfigException("no", f"hydra/launcher/{launcher}", ["basic", "process"])
    assert explain(missing, lambda: ()) == (
        f"hydra/launcher={launcher} is of a package that is not installed:"
        f' pip install "rlmodules[{extra}]"'
    )
    missing = MissingConfigException("no", "hydra/launcher/proces", ["basic", "process"])
    assert "process" in explain(missing, lambda: ()) and "pip" not in explain(missing, lambda: ())


def test_no_launcher_runs_a_job_in_its_own_processes():
    joblib = {"hydra/launcher": "joblib", "hydra/sweeper": "basic"}
    with pytest.raises(ValueError, match=r"hydra/sweeper=basic has hydra/launcher=joblib run jobs"):
        refuse_shared_process(hydra(choices=joblib))
    refuse_shared_process(hydra(choices=joblib, mode="RUN"))
    refuse_shared_process(hydra(choices=joblib | {"hydra/launcher": "basic"}))


def test_the_program_is_there():
    assert Path(program(hydra())[0]).is_file() and sys.executable
