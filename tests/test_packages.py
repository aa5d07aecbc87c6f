"""Importing the packages: what it costs, what it finds, and whose ``datamodules`` it is."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_class, get_method

import datamodules
import rlmodules
from rlmodules import checks

ROOT = Path(__file__).parent.parent
HEAVY = "torch", "lightning", "transformers", "hydra"


def python(code, *path, status=0):
    """What a fresh interpreter prints that finds modules in ``path``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path or [ROOT]))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "costs"),
    [
        ("rlmodules, datamodules", []),
        ("rlmodules.functional", ["torch"]),
        ("rlmodules.schemas", ["hydra"]),
        ("rlmodules.sweeping.processes", []),
        ("rlmodules.sweeping.sweep, rlmodules.sweeping.launcher", ["hydra"]),
    ],
)
def test_a_module_costs_no_more_than_it_needs(module, costs):
    code = f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code).strip() == str(costs)


@pytest.mark.parametrize("package", [rlmodules, datamodules], ids=lambda p: p.__name__)
def test_every_public_name_is_found_listed_and_importable_at_once(package):
    scope = {}
    exec(f"from {package.__name__} import *", scope)
    assert len(package.__all__) > 20
    for name in package.__all__:
        assert scope[name] is getattr(package, name) and name in dir(package)


@pytest.mark.parametrize("package", [rlmodules, datamodules], ids=lambda p: p.__name__)
def test_the_stub_exports_what_it_imports(package):
    """``import X as X``: without the alias a type checker takes a name for the stub's own."""
    tree = ast.parse(Path(package.__file__).with_suffix(".pyi").read_text())
    aliases = [a for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert sorted(a.name for a in aliases) == sorted(package.__all__)
    assert all(a.asname == a.name for a in aliases)


def test_public_classes_are_found_by_hydra_and_by_pickle():
    assert get_class("rlmodules.PPO") is rlmodules.PPO
    assert pickle.loads(pickle.dumps(rlmodules.PPOConfig)) is rlmodules.PPOConfig
    config = rlmodules.PPOConfig(batch_size=8)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rlmodules.collect.source_of", "rlmodules.tasks.collect_preferences.source_of"),
        ("rlmodules.evaluate.evaluate", "rlmodules.tasks.evaluate.evaluate"),
        ("rlmodules.reward_function.model", "rlmodules.reward_models.serving.model"),
    ],
)
def test_a_target_of_an_earlier_version_is_found_with_a_warning(old, new):
    with pytest.warns(FutureWarning, match=f"is now {new.rpartition('.')[0]}"):
        assert get_method(old) is get_method(new)


def test_an_unknown_name_is_an_attribute_error_and_a_broken_module_says_so(tmp_path):
    with pytest.raises(ImportError, match="PPPO"):
        from rlmodules import PPPO  # noqa: F401
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text(
        Path(datamodules.__file__).read_text()  # the same three lines in another package
    )
    (tmp_path / "broken" / "__init__.pyi").write_text("from .part import Thing\n")
    (tmp_path / "broken" / "part.py").write_text("import a_library_that_is_missing\n")
    said = python("from broken import Thing", tmp_path, status=1)
    assert "No module named 'a_library_that_is_missing'" in said


# ------------------------------------------------------- a user's own folder of the same name


@pytest.mark.parametrize("own", ["datamodules/__init__.py", "datamodules.py"])
def test_another_datamodules_that_comes_first_is_refused_with_both_paths(tmp_path, own):
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).write_text("")
    said = python("import rlmodules", tmp_path, ROOT, status=1)
    assert "ImportError" in said and str(ROOT / "datamodules") in said
    assert str(tmp_path / own) in said and "rename" in said


@pytest.mark.parametrize("own", ["datamodules/__init__.py", "datamodules/data.txt"])
def test_another_datamodules_that_comes_later_or_is_no_package_is_passed_by(tmp_path, own):
    (tmp_path / own).parent.mkdir(exist_ok=True)
    (tmp_path / own).write_text("")
    path = [ROOT, tmp_path] if own.endswith(".py") else [tmp_path, ROOT]
    said = python("import rlmodules, datamodules; print(datamodules.__file__)", *path)
    assert said.strip() == str(ROOT / "datamodules" / "__init__.py")


def test_without_any_datamodules_the_missing_one_is_named(tmp_path):
    (tmp_path / "rlmodules").symlink_to(ROOT / "rlmodules")
    said = python("import rlmodules", tmp_path, status=1)
    assert f"{ROOT / 'datamodules'}, but Python finds none" in said


@pytest.mark.parametrize("own", ["datamodules", "datamodules.py"])
def test_a_run_in_a_folder_with_a_datamodules_of_its_own_is_told_that_it_is_hidden(tmp_path, own):
    (tmp_path / own).mkdir() if "." not in own else (tmp_path / own).touch()
    with pytest.warns(UserWarning, match=rf"{tmp_path / own} is hidden by .*: rename it"):
        checks.warn_of_hidden_datamodules(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_run_in_the_checkout_or_in_a_plain_folder_is_told_nothing(tmp_path):
    for folder in (ROOT, tmp_path):
        checks.warn_of_hidden_datamodules(folder)


def test_an_installed_wheel_has_the_plugins_of_sweeps_where_hydra_finds_them(tmp_path):
    """Laid out as the wheel's table says, and nothing else of the checkout in reach."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = wheel["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, tmp_path / package)
    for left_out in wheel["exclude"]:
        shutil.rmtree(tmp_path / left_out)
    for source, place in wheel["force-include"].items():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / place)
    code = (
        "import rlmodules.train, sys, json\n"
        "from hydra.core.plugins import Plugins\n"
        "from hydra.plugins.launcher import Launcher\n"
        "from hydra.plugins.sweeper import Sweeper\n"
        "found = [c for kind in (Launcher, Sweeper) for c in Plugins.instance().discover(kind)]\n"
        "print(json.dumps({c.__name__: sys.modules[c.__module__].__file__ for c in found}))\n"
        "from rlmodules.sweeping.commands import HERE\n"
        "print(HERE)\n"
    )
    found, here = python(code, tmp_path).strip().splitlines()[-2:]
    places = json.loads(found)
    assert here == str(tmp_path)
    for name in ("ProcessLauncher", "GridSweeper"):
        assert places[name].startswith(f"{tmp_path}/hydra_plugins/rlmodules_sweeping/")
