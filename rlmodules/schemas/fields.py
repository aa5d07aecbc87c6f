"""All options of all groups in one list: what checks, tests and tables of options walk over."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

CONF = next(
    folder
    for folder in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
    if folder.is_dir()
)
"""In an installed wheel it is a part of the package."""
WITHOUT_SCHEMA = ("env/custom", "trainer/*", "callbacks/*", "logger/*", "paths/*")
"""Files of ``conf/`` that are all there is to say of their options."""


class Field(NamedTuple):
    """One option."""

    path: str
    """As one overrides it: ``algo.learning_rate``, ``model.lora.r``, ``seed``."""
    option: str
    """Which choice of its group has it: ``ppo``; empty for what every run has."""
    kind: str
    """Its type as ``nodes.py`` writes it, ``float | None``; ``Any`` for what no schema checks."""
    default: Any
    """``MISSING`` for what has to be given; an interpolation where ``conf/`` has one."""
    text: str
    """What its docstring says of it."""


def every_field() -> Iterator[Field]:
    """Every option of every choice of every group, those of ``conf/`` alone included.

    An option that several choices have comes once for each: ``algo.learning_rate`` of ``ppo``, of
    ``dpo`` and so on. What Hydra itself is told (``_target_``, ``hydra.*``) is no option.
    """
    from rlmodules.schemas.nodes import NODES

    for group, nodes in NODES.items():
        for option, node in nodes.items():
            yield from _of_schema(node, group, option)
    for pattern in WITHOUT_SCHEMA:
        for path in sorted(CONF.glob(f"{pattern}.yaml")):
            yield from _of_yaml(_loaded(path), path.parent.name, path.stem)
    run = {k: v for k, v in _loaded(CONF / "train.yaml").items() if k != "hydra"}
    yield from _of_yaml(run, "", "")


def _of_schema(node: type, prefix: str, option: str) -> Iterator[Field]:
    for field in fields(node):
        path, default = f"{prefix}.{field.name}", field.default_factory()
        if is_dataclass(field.type):
            yield from _of_schema(field.type, path, option)
        elif not field.name.startswith("_"):
            yield Field(path, option, _said(field.type), default, field.metadata["help"])


def _said(kind: Any) -> str:
    plain = isinstance(kind, type) and not get_args(kind)
    return kind.__name__ if plain else str(kind).replace("typing.", "")


def _of_yaml(values: dict[str, Any], prefix: str, option: str) -> Iterator[Field]:
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict):
            yield from _of_yaml(value, path, option)
        elif name != "defaults" and not name.startswith("_"):
            yield Field(path, option, "Any" if value is None else type(value).__name__, value, "")


def _loaded(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}
