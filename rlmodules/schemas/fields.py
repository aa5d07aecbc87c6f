"""All options of all groups in one list: what checks, tests and tables of options walk over."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
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
    yield from commented_fields()


def commented_fields() -> Iterator[Field]:
    """Those that stand in ``conf/`` alone, where the comment behind an option is its text."""
    for pattern in WITHOUT_SCHEMA:
        for path in sorted(CONF.glob(f"{pattern}.yaml")):
            yield from _of_yaml(path, _loaded(path), path.parent.name, path.stem)
    path = CONF / "train.yaml"
    yield from _of_yaml(path, {k: v for k, v in _loaded(path).items() if k != "hydra"}, "", "")


def _of_schema(node: type, prefix: str, option: str) -> Iterator[Field]:
    for field in fields(node):
        path, default = f"{prefix}.{field.name}", field.default_factory()
        if is_dataclass(field.type):
            yield from _of_schema(field.type, path, option)
        elif not field.name.startswith("_"):
            yield Field(path, option, kind_name(field.type), default, field.metadata["help"])


def kind_name(kind: Any) -> str:
    """A type as one writes it."""
    plain = isinstance(kind, type) and not get_args(kind)
    return kind.__name__ if plain else str(kind).replace("typing.", "")


def _of_yaml(file: Path, values: dict[str, Any], prefix: str, option: str) -> Iterator[Field]:
    comments, above = comments_behind(file.read_text()), f"{file.parent.name}." if option else ""
    for path, value in _leaves(values, prefix):
        kind = "Any" if value is None else type(value).__name__
        yield Field(path, option, kind, value, comments.get(path.removeprefix(above), ""))


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict):
            yield from _leaves(value, path)
        elif name != "defaults" and not name.startswith("_"):
            yield path, value


def comments_behind(text: str) -> dict[str, str]:
    """Comments behind the options of a YAML file, and on the lines below, by the options' paths."""
    found: dict[str, str] = {}
    open_keys: list[tuple[int, str]] = []
    path = ""
    for line in text.splitlines():
        if key := re.match(r"( *)([\w-]+):", line):
            depth = len(key[1])
            open_keys = [(d, name) for d, name in open_keys if d < depth] + [(depth, key[2])]
            path = ".".join(name for _, name in open_keys)
            comment = re.search(r"(?:^|\s)#(.*)", line)
            if comment:
                found[path] = comment[1].strip()
        elif path in found and re.match(r"\s+#", line):
            found[path] += " " + line.strip(" #")
        else:
            path = ""
    return found


@cache
def _loaded(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}
