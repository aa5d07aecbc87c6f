"""Shared fixtures: everything runs on the random tiny model, on the CPU, without a network."""

import functools
import gc
import os
import sys
import warnings
from collections import Counter
from types import SimpleNamespace

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the suite compares bit by bit; benchmarks use the GPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import omegaconf
import pytest
import torch
import yaml
from asked_once import ask_once
from composed_once import compose_once
from hydra._internal.core_plugins import file_config_source
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from lightning.fabric.utilities import registry
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from rlmodules.models.embedded import tiny_model, tiny_tokenizer

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other
gc.set_threshold(700, 10, 200)  # a third of a second to look at all that is imported, for nothing


def pytest_collection_modifyitems(items):
    """Files of few tests first: theirs are whole processes, for which one worker would be left."""
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: sizes[item.path])


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Figures are files without a drawing, which takes a fifth of a short run.

    Those of tests that are marked ``draws`` are drawn.
    """
    if request.node.get_closest_marker("draws") is None:
        blank, write = Figure((0.1, 0.1)), Figure.savefig
        monkeypatch.setattr(Figure, "savefig", lambda _, path, **__: write(blank, path))


@functools.cache
def parsed(text):
    """What a YAML file holds."""
    return yaml.load(text, omegaconf._utils.get_yaml_loader())


def read(file):
    """As OmegaConf reads a file."""
    return OmegaConf.create({} if (held := parsed(file.read())) is None else held)


parsed_value = functools.cache(omegaconf.base.parse)
entry_points = functools.cache(registry.entry_points)


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    """What hundreds of commands read anew: 22 files and some 50 interpolations each, all schemas
    (copied before they are looked at), and what is installed."""
    monkeypatch.setattr(file_config_source, "OmegaConf", SimpleNamespace(load=read))
    monkeypatch.setattr(ConfigStore, "__deepcopy__", lambda store, _: store, raising=False)
    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(omegaconf.base, "parse", parsed_value)
    monkeypatch.setattr(omegaconf._utils, "parse", parsed_value)
    compose_once(monkeypatch)


ASKING = {"models", "sampling"}
"""Folders of tests of how models are asked, and of what that costs."""


@pytest.fixture(autouse=True)
def asked_once(request, monkeypatch):
    """Equal models are asked once how they compute."""
    if request.node.path.parent.name not in ASKING:
        ask_once(monkeypatch)


@pytest.fixture(autouse=True)
def same_recursion_limit():
    """As in the beginning; torch.compile raises it for good."""
    limit = sys.getrecursionlimit()
    yield
    sys.setrecursionlimit(limit)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model()[0]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Calls ``train.py`` in ``tmp_path`` and returns what it says.

    It runs in this process: a process of its own would take longer to import than to train.
    """
    import train

    def call(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        if not any(word.startswith("hydra.mode=") for word in arguments):
            monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes all for that
        capsys.readouterr()
        said, code = "", 0
        with warnings.catch_warnings(record=True) as warned:
            try:
                train.main()
            except SystemExit as end:
                said, code = (end.code, 1) if isinstance(end.code, str) else ("", end.code)
        written = capsys.readouterr()
        output = "\n".join([written.out, written.err, *(str(w.message) for w in warned), said])
        assert code == status, output[-3000:]
        assert "Traceback" not in output
        return output

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # a run adds its folder
    before = set(sys.modules)
    yield call
    for name in set(sys.modules) - before:  # modules of this folder are no other's
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
