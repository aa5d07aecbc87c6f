"""Writes the tables of options and metrics into the pages: ``python docs/tables.py``.

A table stands between two comments, the first of which says what is in it, and is never edited:

    <!-- options of DPOConfig: loss_type loss_weights -->
    <!-- metrics: val/accuracy val/margin -->
    <!-- end -->

Options are those of a schema (``rlmodules/schemas/nodes.py``), with the default of the class and,
where ``conf/algo/NAME.yaml`` has another for the default run, that one too; metrics are those of
``rlmodules/metrics/``.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlmodules.metrics.table import find  # noqa: E402  (a script finds the packages beside it)
from rlmodules.schemas import nodes  # noqa: E402

DOCS = ROOT / "docs"
TABLE = re.compile(
    r"<!-- (?:options of (?P<config>\w+): (?P<options>[^>]*?)|metrics: (?P<metrics>[^>]*?)) -->\n"
    r"(?P<rows>.*?)<!-- end -->",
    re.DOTALL,
)
PREFIX = {"ModelConfig": "model", "LoraConfig": "model.lora"}
"""Where a config's options stand on the command line, if not in ``algo``."""
RUNS = {"RewardModelConfig": "reward", "MultiObjectiveConfig": "multi_objective"}
"""Whose default run's values are told, if the config is not ``NAMEConfig``."""


class Table(NamedTuple):
    """A table on a page.

    Attributes:
        config: the schema's name, or None for metrics.
        names: options or metrics, in order.
    """

    config: str | None
    names: tuple[str, ...]


def tables(text: str) -> Iterator[Table]:
    """Those of a page."""
    for found in TABLE.finditer(text):
        names = found["options"] or found["metrics"] or ""
        yield Table(found["config"], tuple(names.split()))


def written(text: str) -> str:
    """A page with its tables as they should be.

    Raises:
        ValueError: a table names an option or a metric that there is not.
    """

    def table(found: re.Match[str]) -> str:
        first = found[0].split("\n", 1)[0]
        (said,) = tables(found[0])
        rows = of_metrics(said.names) if said.config is None else of_options(*said)
        return "\n".join([first, "", *rows, "", "<!-- end -->"])

    return TABLE.sub(table, text)


def of_options(config: str, names: tuple[str, ...]) -> list[str]:
    """Rows of options."""
    known = {field.name: field for field in fields(getattr(nodes, config))}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{config} has no {', '.join(unknown)}")
    prefix, sized = PREFIX.get(config, "algo"), sizes(config)
    rows = ["| option | default | effect |", "|---|---|---|"]
    for name in names:
        default = shown(default_of(known[name]))
        if name in sized:
            default += f"; default run {shown(sized[name])}"
        effect = prose(known[name].metadata["help"])
        rows.append(f"| `{prefix}.{name}` | {default} | {effect} |")
    return rows


def of_metrics(names: tuple[str, ...]) -> list[str]:
    """Rows of metrics."""
    rows = ["| metric | healthy | otherwise |", "|---|---|---|"]
    for name in names:
        metric = find(name)
        if metric is None:
            raise ValueError(f"there is no metric {name}")
        what = metric.healthy or metric.what
        link = f"[`{name}`](metrics.md#{anchor(metric.name, metric.unit)})"
        rows.append(f"| {link} | {prose(what)} | {prose(metric.otherwise)} |")
    return rows


def default_of(field: Field) -> object:
    """What an option is where nobody says anything."""
    value = field.default_factory()  # type: ignore[misc]  # all of nodes.py have one
    return getattr(value, "name", value)


def sizes(config: str) -> dict[str, object]:
    """What the default run of a config's algorithm sets otherwise than the config."""
    name = RUNS.get(config, config.removesuffix("Config").lower())
    path = ROOT / "conf" / "algo" / f"{name}.yaml"
    if not path.exists():
        return {}
    given = yaml.safe_load(path.read_text()).get("algo", {})
    return {key: value for key, value in given.items() if not str(value).startswith("${")}


def shown(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    words = {None: "null", True: "true", False: "false"}
    is_word = value is None or isinstance(value, bool)
    return f"`{words[value] if is_word else value}`"  # type: ignore[index]


def prose(text: str) -> str:
    """A docstring's text in a cell."""
    text = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    return text[:1].upper() + text[1:]


def anchor(name: str, unit: str) -> str:
    """What ``docs/metrics.md`` is to be linked by, as GitHub and MkDocs both make it."""
    heading = f"{name} ({unit})" if unit else name
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def main() -> int:
    """Write all pages' tables, and name the pages that change."""
    for page in sorted(DOCS.glob("*.md")):
        before = page.read_text()
        after = written(before)
        if after != before:
            page.write_text(after)
            print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
