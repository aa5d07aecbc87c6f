"""What ``train.py --help`` says: the options of what was chosen, with their types and defaults.

Hydra's own ``--help`` lists groups and a config, takes seconds for it, and knows no descriptions.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlmodules.schemas.fields import CONF, commented_fields, comments_behind, kind_name

FLAGS = frozenset({"--help", "-h"})
FIRST = ("algo", "model", "data", "env", "reward", "task", "experiment", "hparams_search")
"""Groups in the order in which one thinks of them; others follow."""
OF_SWEEPS = ("hydra/launcher", "hydra/sweeper")
WIDTH, LONGEST_VALUE, LONGEST_TEXT = 110, 28, 150
"""The first where there is no terminal."""
GIVEN = ("???", "${required:}")
ABOUT = """\
Composes a run from conf/, trains, and writes to outputs/DATE/TIME. GROUP=CHOICE chooses a part, \
OPTION=VALUE sets one of its options, as listed below; +OPTION=VALUE adds what has no schema.\
"""
MORE = {
    "--help algo=dpo": "the options of another choice",
    "-m OPTION=A,B": "a sweep: one run for each value (and combination of values)",
    "--cfg job": "prints what would run, as YAML, and runs nothing",
    "--info": "prints how it was composed",
    "--hydra-help": "all flags, of Hydra",
    "--shell-completion install=bash": "what to evaluate for tab completion (also zsh, fish)",
}
EXAMPLES = (
    "algo=ppo model=hf model.name=google/gemma-2-2b model.lora.r=16",
    "algo=grpo env=math algo.num_iterations=50 logger=wandb",
    "algo=dpo data.path=pairs.jsonl",
    "ckpt_path=last algo.num_iterations=100",
    "-m algo=ppo algo.learning_rate=1e-5,3e-5 seed=0,1,2",
)


class Option(NamedTuple):
    """A line of the help."""

    name: str
    kind: str
    value: str
    text: str


def print_help() -> None:
    """Print the help of this process's command."""
    arguments = [argument for argument in sys.argv[1:] if argument not in FLAGS]
    program = Path(sys.argv[0]).name
    started = f"python {program}" if program.endswith(".py") else program
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    with console.capture() as printed:
        for part in parts(started, overrides):
            console.print(part)
    text = "\n".join(line.rstrip() for line in printed.get().splitlines())
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of `--help | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parts(started: str, overrides: Sequence[str]) -> Iterator[Any]:
    """The help from top to bottom.

    Args:
        started: how the command begins.
        overrides: what was chosen; of a sweep's values the first stand for all.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", overrides=_first_values(overrides), return_hydra_config=True)
    choices = {group: str(chosen) for group, chosen in cfg.hydra.runtime.choices.items()}
    yield Text(f"{started} [GROUP=CHOICE ...] [OPTION=VALUE ...]", style="bold")
    yield Text(f"\n{ABOUT}\n")
    yield Text("Groups (* is chosen)", style="bold")
    yield _grid((group, _names(names, choices.get(group))) for group, names in _groups())
    by_group = _options(cfg, choices)
    for group in ("", *(name for name, _ in _groups())):
        if options := by_group.get(group):
            chosen = f"{group}={choices[group]}" if group in choices else group
            yield Text(f"\n{chosen or 'Of every run'}", style="bold")
            yield from _listed(options)
    for group in OF_SWEEPS:
        if options := list(_of_sweeps(cfg, group, choices[group])):
            yield Text(f"\n{group}={choices[group]}  (of sweeps: -m)", style="bold")
            yield from _listed(options)
    yield Text("\nFlags", style="bold")
    yield _grid(MORE.items())
    yield Text("\nExamples", style="bold")
    yield Text("\n".join(f"  {started} {example}" for example in EXAMPLES))


def _first_values(overrides: Sequence[str]) -> list[str]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        f"{o.get_key_element()}={_first(o)}" if o.is_sweep_override() else str(o.input_line)
        for o in parsed
    ]


def _first(override: Override) -> str:
    """Of the values that an option is swept over, one: of an interval where it begins."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return str(value.start)
    return next(override.sweep_string_iterator())


def _groups() -> list[tuple[str, list[str]]]:
    """Every group with its choices."""
    found = {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml")) and folder.name != "paths"
    }
    order = [*FIRST, *(name for name in found if name not in FIRST)]
    for group in OF_SWEEPS:
        known = {path.stem for path in (CONF / group).glob("*.yaml")}
        known |= {name.removesuffix(".yaml") for name in ConfigStore.instance().list(group)}
        found[group], order = sorted(known), [*order, group]
    return [(group, found[group]) for group in order if group in found]


def _names(names: Sequence[str], chosen: str | None) -> Text:
    marked = [(f"*{name}", "bold") if name == chosen else (name, "") for name in names]
    return Text(" ").join(Text(name, style=style) for name, style in marked)


def _options(cfg: DictConfig, choices: dict[str, str]) -> dict[str, list[Option]]:
    """The options of each group; under the empty name those of none."""
    found: dict[str, list[Option]] = {}
    for option in _walk(cfg, "", choices):
        group = option.name.partition(".")[0]
        own = group in choices and group != "paths"
        found.setdefault(group if own else "", []).append(option)
    return found


def _of_sweeps(cfg: DictConfig, group: str, choice: str) -> Iterator[Option]:
    """What the chosen launcher or sweeper is told, as far as ``conf/`` describes it."""
    file, node = CONF / group / f"{choice}.yaml", cfg.hydra[group.removeprefix("hydra/")]
    comments = comments_behind(file.read_text()) if file.is_file() else {}
    for name in node:
        if str(name) in comments and not str(name).startswith("_"):
            path = f"{group.replace('/', '.')}.{name}"
            yield Option(path, "", _shown(node, name), brief(comments[str(name)]))


def _walk(node: DictConfig, prefix: str, choices: dict[str, str]) -> Iterator[Option]:
    kind = OmegaConf.get_type(node)
    typed = {field.name: field for field in fields(kind)} if is_dataclass(kind) else {}
    for name in node:
        child, path = node._get_node(name), f"{prefix}{name}"
        if str(name).startswith("_") or path in ("hydra", "module", "suggested"):
            continue
        inner = isinstance(child, DictConfig) and not child._is_none() and len(child or {})
        if inner and not child._is_interpolation() and not child._is_missing():
            yield from _walk(child, f"{path}.", choices)
        elif path not in choices:
            field = typed.get(str(name))
            if field is not None:
                said, text = kind_name(field.type), sentence(field.metadata["help"])
            else:
                choice = choices.get(path.partition(".")[0], "")
                said, text = _commented(path, choice, child._value())
            yield Option(path, said, _shown(node, name), brief(text))


def _commented(path: str, choice: str, value: Any) -> tuple[str, str]:
    """Type and comment of an option that stands in ``conf/`` alone."""
    alike = [field for field in commented_fields() if field.path == path]
    alike.sort(key=lambda field: field.option != choice)  # else of the choice that it builds on
    kind = "" if value is None or value in GIVEN else type(value).__name__
    return (alike[0].kind, alike[0].text) if alike else (kind, "")


def _shown(node: DictConfig, name: Any) -> str:
    """A value as one writes it; a plain ``${algo.seed}`` says more than what it comes to."""
    value = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[call-overload]
    if isinstance(value, str) and value in GIVEN:
        return "(has to be given)"
    if isinstance(value, str) and re.search(r"\$\{(?!hydra|now|own_folder)[\w.]+:", value):
        with suppress(Exception):  # of resolvers, which may want what is not chosen yet
            value = node[name]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return cut(f"{value:g}" if isinstance(value, float) else str(value), LONGEST_VALUE)


def cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def sentence(text: str) -> str:
    """Arguments are described in lower case, attributes in sentences: the latter for both."""
    return text[:1].upper() + text[1:]


def brief(text: str) -> str:
    """The first sentences of a description, as many as fit; the first whole in any case."""
    sentences = re.split(r"(?<=\.) (?=[A-Z0-9])", text.replace("``", ""))
    taken = sentences[0]
    for sentence in sentences[1:]:
        if len(taken) + len(sentence) >= LONGEST_TEXT:
            break
        taken += f" {sentence}"
    return taken


def _listed(options: Sequence[Option]) -> Iterator[Any]:
    """Those with a description a line each; names and values of the others in one paragraph."""
    told = [option for option in options if option.text]
    if told:
        yield _grid((f"{o.name}={o.value}", f"{_kind(o.kind)}{o.text}") for o in told)
    if rest := [f"{o.name}={o.value}" for o in options if not o.text]:
        yield _grid([("also", ", ".join(rest))] if told else [(line, "") for line in rest])


def _kind(kind: str) -> str:
    plain = kind.replace(" | None", " or null")
    return "" if plain in ("", "Any") else f"({plain}) "


def _grid(rows: Any) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=26, max_width=48, overflow="fold")
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(f"  {name}"), text if isinstance(text, Text) else Text(text))
    return table
