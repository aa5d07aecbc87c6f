"""``task=inspect``: what a run would be trained on, row by row and token by token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
from hydra.utils import get_class
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from datamodules import RolloutDataModule
from datamodules.checks import require_whole
from datamodules.examples.datamodule import ExampleDataModule
from datamodules.rollouts.episodes import act_out, score
from datamodules.rollouts.inspection import prompt_of, sample_of
from datamodules.seeding import derive_seed
from datamodules.text.inspection import Inspection, Sample, quantiles, spread
from datamodules.text.problems import gathered
from rlmodules.models import ModelConfig, load_tokenizer
from rlmodules.tasks.ready import make_ready
from rlmodules.views.pages import write_page
from rlmodules.views.tokens import Token, as_table, printable, tokens_of

SHOWN = 20
"""Reasons why rows are left out of a training that are shown."""
TITLE = "What this run is trained on"


@dataclass(frozen=True)
class Numbers:
    """A small table of what was found."""

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


def inspect(
    make_module: Callable[[], L.LightningModule],
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    *,
    out: str | None = None,
    rows: int = 3,
    episodes: int = 2,
) -> str:
    """Print what the run of these settings reads, and what it makes of it.

    Of files the tokenizer alone is loaded; an environment plays ``episodes``, for which the policy
    is. Nothing is trained.

    Args:
        out: also write a page of HTML there, one file that needs nothing else.
        rows: how many rows of a file are shown token by token.
        episodes: how many episodes are played and shown; 0 shows prompts alone.

    Raises:
        ValueError: a number is negative; and what a training of these settings would be refused
            for, except rows that cannot be learned from, which are listed.
    """
    require_whole("task", 0, rows=rows, episodes=episodes)
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise ValueError(f"out={out!r}: there is no folder {str(Path(out).absolute().parent)!r}")
    if isinstance(data, ExampleDataModule):
        found, tokenizer = _examples(data, settings, rows)
    else:
        found, tokenizer = _episodes(make_module, data, trainer, settings, rows, episodes)
    tables = list(_numbers(data, found))
    samples = [(s.title, _sides(tokenizer, s)) for s in found.samples]
    console = Console()
    for table in tables:
        console.print(_as_rich(table))
    for title, sides in samples:
        for side, tokens in sides.items():
            console.print(as_table(tokens, f"{printable(title)}: {side}"))
    for finding in found.findings:
        console.print(Text(finding, "red"))
    if out is None:
        return "" if found.findings else "Nothing suspicious was found."
    page = [
        {"title": t, "sides": [{"title": s, "tokens": k} for s, k in sides.items()]}
        for t, sides in samples
    ]
    values = {"title": TITLE, "findings": found.findings, "tables": tables, "samples": page}
    write_page(Path(out), "inspect.html", **values)
    return f"Written: {out}"


def _examples(
    data: ExampleDataModule, settings: Mapping[str, Any], rows: int
) -> tuple[Inspection, PreTrainedTokenizerBase]:
    algorithm = get_class(settings["module"])
    tokenizer = load_tokenizer(ModelConfig.of(settings["model"], "", given=True))
    learner = SimpleNamespace(
        tokenizer=tokenizer,
        learns_from=algorithm.learns_from,
        closes_texts=algorithm.closes_texts,
    )
    data.trainer = SimpleNamespace(lightning_module=learner, is_global_zero=True, world_size=1)
    data.on_error = "skip"  # so that all of them are seen
    data.setup()
    found = data.inspection()
    found.samples = data.samples(rows)
    return found, tokenizer


def _episodes(
    make_module: Callable[[], Any],
    data: RolloutDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    rows: int,
    episodes: int,
) -> tuple[Inspection, PreTrainedTokenizerBase]:
    module = make_module()
    make_ready(module, data, trainer)
    found, env, starts = data.inspection(), data.env, data.train_starts
    chosen = [starts[i] for i in spread(len(starts), rows)]
    found.samples = [prompt_of(f"starting state {s}", env.fork().reset(s)) for s in chosen]
    chosen = [starts[i] for i in spread(len(starts), episodes)]
    if chosen:
        seeds = [derive_seed(settings["seed"], start) for start in chosen]
        played, trajectories = act_out(module, env, chosen, seeds)
        score(env, played, trajectories)
        shown = zip(chosen, trajectories, strict=True)
        found.samples += [sample_of(f"episode of {start}", t) for start, t in shown]
    return found, module.tokenizer


def _numbers(data: Any, found: Inspection) -> Any:
    for reading in data.readings.values():
        columns, left_out = reading.columns, gathered(reading.skipped, SHOWN)
        rows = [
            ("rows", str(reading.rows)),
            ("left out", str(len(reading.skipped))),
            ("columns used", ", ".join(columns.used) or "-"),
            ("columns not used", ", ".join(columns.unused) or "-"),
            *(("note", note) for note in reading.notes),
            *((f"left out {i}", why) for i, why in enumerate(left_out, start=1)),
        ]
        yield Numbers(reading.path, (), rows)
    yield Numbers("Rows", (), list(found.counts.items()))
    lengths = [(name, *map(str, quantiles(v))) for name, v in found.lengths.items() if v]
    yield Numbers("Tokens", ("", "least", "median", "90%", "99%", "most"), lengths)


def _sides(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> dict[str, list[Token]]:
    shown = {}
    for name, parts in sample.sides.items():
        ids = [i for part in parts for i in part.ids]
        kinds = [part.kind for part in parts for _ in part.ids]
        shown[name] = tokens_of(tokenizer, ids, kinds)
    return shown


def _as_rich(numbers: Numbers) -> Table:
    table = Table(
        title=numbers.title, title_justify="left", show_header=bool(numbers.headings), box=None
    )
    for i in range(max((len(row) for row in numbers.rows), default=1)):
        name = numbers.headings[i] if numbers.headings else ""
        table.add_column(name, justify="right" if numbers.headings and i else "left")
    for row in numbers.rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
