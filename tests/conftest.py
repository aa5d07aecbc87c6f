"""Shared fixtures: everything runs on the random tiny model, on the CPU, without a network."""

import os
import sys
import warnings
from collections import Counter

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the suite compares bit by bit; benchmarks use the GPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from hydra._internal.hydra import Hydra
from matplotlib.figure import Figure

from rlmodules.models.embedded import tiny_model

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


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


@pytest.fixture(autouse=True)
def same_recursion_limit():
    """As in the beginning; torch.compile raises it for good."""
    limit = sys.getrecursionlimit()
    yield
    sys.setrecursionlimit(limit)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_model()[1]


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
