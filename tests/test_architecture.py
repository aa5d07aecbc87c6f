"""Imports point down only; files stay small."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("rlmodules", "datamodules")
FILES = [*sorted(p for d in PACKAGES for p in (ROOT / d).glob("**/*.py")), ROOT / "train.py"]
CONFIGURED = ("rlmodules/schemas", "rlmodules/env_schemas", "train")
ALGORITHMS = {"ppo", "grpo", "dpo", "orpo", "reward"}


def imports(path):
    """Every module that a file imports, with ``from a import b`` as ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path):
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    for module in imports(path):
        top = module.split(".")[0]
        if name.startswith("rlmodules/functional/") and not (
            top in ("torch", "dataclasses", "typing", "collections", "math")
            or module.startswith("rlmodules.functional")
        ):
            yield f"functional imports {module}"
        if name.startswith("datamodules/") and top == "rlmodules":
            yield f"datamodules imports {module}"
        if top in ("hydra", "omegaconf") and name not in CONFIGURED:
            yield f"{name} imports {module}"
        below = parts[1] if (parts := module.split("."))[0] == "rlmodules" and parts[1:] else None
        if name.startswith("rlmodules/models/") and below not in (None, "functional", "models"):
            yield f"models import {module}"
        if name.split("/")[-1] in ALGORITHMS and below in ALGORITHMS - {name.split("/")[-1]}:
            yield f"{name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path):
    assert list(violations(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_file_can_be_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 300


def test_the_check_sees_an_import_that_points_up(tmp_path):
    assert "rlmodules.algorithms.ppo" in set(imports_of("from rlmodules import ppo", tmp_path))
    assert "hydra" in set(imports_of("def f():\n    import hydra", tmp_path))


def imports_of(source, folder):
    path = folder / "x.py"
    path.write_text(source)
    return imports(path)
