"""A folder belongs to one run."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime as real_datetime
from pathlib import Path

import pytest

from rlmodules import PPOConfig, PPOTrainer, facade
from rlmodules.resuming import folder
from rlmodules.resuming.folder import ForeignFolderError, held, new_folder, require_own, run_folder

QUICK = ["experiment=smoke", "trainer.precision=32-true", "algo.device=cpu", "logger=none"]


class Noon(real_datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 12, 0, 0)


def test_of_many_that_ask_at_once_each_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(new_folder, [tmp_path / "day" / "time"] * 64))
    assert len(set(found)) == 64 and all(path.is_dir() for path in found)
    assert {path.name for path in found} == {"time", *(f"time-{n}" for n in range(2, 65))}


def test_two_commands_in_one_second_have_two_folders(command, tmp_path, monkeypatch):
    monkeypatch.setattr("hydra.core.utils.datetime", Noon)
    said = [command(*QUICK, f"seed={seed}") for seed in (0, 1)]
    places = [tmp_path / "outputs/2026-01-02" / name for name in ("12-00-00", "12-00-00-2")]
    for seed, (place, text) in enumerate(zip(places, said, strict=True)):
        assert f"seed: {seed}\n" in (place / "config.yaml").read_text()
        assert (place / "checkpoints" / "last.ckpt").is_file()
        assert f"seed: {seed}\n" in (place / ".hydra" / "config.yaml").read_text()
        assert str(place / "report.json") in text


def test_two_sweeps_in_one_second_have_two_folders_and_follow_the_root(
    command, tmp_path, monkeypatch
):
    monkeypatch.setattr("hydra.core.utils.datetime", Noon)
    options = ["-m", "hydra/launcher=basic", *QUICK, "algo.num_iterations=1", "seed=0,1"]
    for _ in range(2):
        command(*options)
    command(*options, "paths.output_root=elsewhere")
    roots = ["multirun/2026-01-02/12-00-00", "multirun/2026-01-02/12-00-00-2"]
    roots.append("elsewhere/multirun/2026-01-02/12-00-00")
    for root in roots:
        for seed in (0, 1):
            assert (
                f"seed: {seed}\n" in (tmp_path / root / f"seed={seed}" / "config.yaml").read_text()
            )
    assert len(list(tmp_path.rglob("report.json"))) == 6


def test_a_folder_with_another_run_is_refused_and_left_as_it_is(command, tmp_path):
    mine = f"hydra.run.dir={tmp_path}/mine"
    command(*QUICK, mine)
    files = {
        path: path.read_bytes()
        for path in (tmp_path / "mine").rglob("*")
        if path.is_file() and ".hydra" not in path.parts
    }
    said = command(*QUICK, mine, "seed=1", status=1)
    assert f"{tmp_path}/mine holds another run (checkpoints, config.yaml, report.json)" in said
    assert all(path.read_bytes() == data for path, data in files.items())
    assert not (tmp_path / "mine" / "error.txt").exists()
    for ckpt_path in (f"{tmp_path}/mine", "last"):
        more = [f"ckpt_path={ckpt_path}", "paths.output_root=."]
        iterations = 3 if ckpt_path == "last" else 4
        command(*QUICK, mine, *more, f"algo.num_iterations={7 - iterations}")


def test_a_folder_in_which_a_run_goes_on_is_refused_to_others_until_it_ends(tmp_path, command):
    hold = (
        "import sys, time, pathlib\nfrom rlmodules.resuming.folder import held\n"
        "with held(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    place = tmp_path / "mine"
    root = Path(folder.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(place)], stdout=subprocess.PIPE, env=environment
    )
    assert other.stdout.readline()
    try:
        with pytest.raises(ForeignFolderError, match="another run is going on in"), held(place):
            pass
        said = command(*QUICK, f"hydra.run.dir={place}", status=1)
        assert f"another run is going on in {place}" in said
    finally:
        other.kill()
        other.wait()
    with held(place):
        pass


def test_a_run_that_goes_on_may_do_so_in_its_own_folder(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    require_own(tmp_path / "run", last)
    require_own(tmp_path / "new", last)
    for ckpt_path in (None, tmp_path / "other" / "checkpoints" / "last.ckpt"):
        with pytest.raises(ForeignFolderError, match=r"holds another run \(checkpoints\)"):
            require_own(tmp_path / "run", ckpt_path)


def test_the_processes_of_a_run_share_its_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_taken", [])
    monkeypatch.delenv(folder.TAKEN, raising=False)
    began = [run_folder(tmp_path / "noon") for _ in range(2)]
    assert began == [tmp_path / "noon", tmp_path / "noon-2"]
    assert json.loads(os.environ[folder.TAKEN]) == [str(path) for path in began]
    monkeypatch.setattr(folder, "_taken", [])  # what Lightning starts has the environment alone
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [run_folder(tmp_path / "a second later") for _ in range(2)] == began
    assert not (tmp_path / "a second later").exists()


def test_facades_made_in_one_second_train_in_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(facade, "datetime", Noon)
    c = {"model_name": "random:tiny", "batch_size": 4, "mini_batch_size": 4, "ppo_epochs": 1}
    c |= {"max_new_tokens": 4, "num_iterations": 1, "device": "cpu"}
    made = [PPOTrainer(PPOConfig(**c, seed=seed), enable_progress_bar=False) for seed in (0, 1)]
    assert not (tmp_path / "outputs").exists()  # nothing is written before there is a run
    for trainer in made:
        trainer.train(["One", "Two"])
    places = [Path("outputs/2026-01-02") / name for name in ("12-00-00", "12-00-00-2")]
    assert [trainer.output_dir for trainer in made] == places
    assert all((place / "checkpoints" / "last.ckpt").is_file() for place in places)
    monkeypatch.setattr(facade.Facade, "folders", set())  # as in another process
    again = PPOTrainer(PPOConfig(**c), output_dir=places[0], enable_progress_bar=False)
    with pytest.raises(ForeignFolderError, match="holds another run"):
        again.train(["One", "Two"])
    more = {"num_iterations": 2, "ckpt_path": places[0]}
    assert len(again.train(["One", "Two"], **more)["rollout/reward"]) == 2
