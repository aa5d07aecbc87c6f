"""``task=benchmark``: tasks of EleutherAI's lm-evaluation-harness, on a model or around a run.

The harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) is given the model and
the tokenizer that this project loaded; prompts, metrics, seeds and standard errors are its own.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table

from datamodules.atomic import write_text
from datamodules.checks import is_finite, require_whole
from rlmodules.algorithms.policy import config_of_export
from rlmodules.callbacks.card import add_benchmarks
from rlmodules.models import ModelConfig, load_model, load_tokenizer
from rlmodules.reports.benchmarks import BENCHMARK, COLUMNS, lines
from rlmodules.reports.reading import read_run
from rlmodules.reports.run_page import write_run_page
from rlmodules.tasks.harness import Figures, Harness, rows_of

EXPORT = "model"
"""Where in its folder a run exports to."""
READ = ("task", "tasks", "run", "out", "model", "ckpt_path", "trainer", "paths", "hydra")
"""Groups and options that the task reads by itself."""


def benchmark(
    make_module: Callable[[], L.LightningModule],
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    *,
    tasks: Sequence[str],
    run: str | None = None,
    out: str | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    limit: float | None = None,
    include_path: str | None = None,
    apply_chat_template: bool = False,
    fewshot_as_multiturn: bool = True,
    system_instruction: str | None = None,
) -> str:
    """Measure the model of these settings, or that of a run before and after it.

    A run's figures go beside its report; differences have paired standard errors.

    Args:
        tasks: their names, groups and tags in lm-eval.
        run: a run's folder: its model as it started, and its export in ``model/``.
        out: write the figures of a single model there, as JSON.
        num_fewshot: examples in the prompt; null leaves it to the task.
        batch_size: sequences scored at once.
        limit: so many examples of each task, or below 1 that share of them; for trying out.
        include_path: folder of YAML files of further tasks.
        apply_chat_template: write prompts by the model's chat template.
        fewshot_as_multiturn: with a chat template, examples are turns of their own.
        system_instruction: what the system turn says; without a chat template, what comes first.

    Raises:
        ValueError: lm-eval is not installed or knows no such task, an option is out of range or
            read by nothing, or the model cannot be loaded or has no next-token head.
    """
    require_whole("task", 1, batch_size=batch_size)
    require_whole("task", 0, num_fewshot=num_fewshot or 0)
    if limit is not None and not (is_finite(limit) and limit > 0 and (limit < 1 or limit % 1 == 0)):
        raise ValueError(f"task.limit={limit} must be a whole number, a share below 1, or null")
    _refuse_unread(run, out, settings, trainer)
    asked = {
        "tasks": list(tasks),
        "num_fewshot": num_fewshot,
        "limit": int(limit) if limit is not None and limit >= 1 else limit,
        "apply_chat_template": apply_chat_template,
        "fewshot_as_multiturn": fewshot_as_multiturn,
        "system_instruction": system_instruction,
    }
    harness = Harness(asked, include_path, batch_size, trainer.strategy.root_device)
    if run is None:
        name, before = settings["ckpt_path"] or settings["model"]["name"], {}
        after = harness.measure(*_model_of(make_module, settings))
    else:
        name, before, after = _around(Path(run), harness)
    found = {"lm_eval": version("lm-eval"), "asked": asked, "model": name, "dtype": harness.dtype,
             "rows": list(rows_of(before, after))}  # fmt: skip
    Console().print(_table(found, run is not None))
    return _written(found, run, out)


def _refuse_unread(
    run: str | None, out: str | None, settings: Mapping[str, Any], trainer: L.Trainer
) -> None:
    if trainer.world_size > 1:
        raise ValueError(
            f"task=benchmark computes in one process, and {trainer.world_size} are asked for: set"
            " trainer.devices=1"
        )
    if settings.get("sampler"):
        raise ValueError("task=benchmark scores by transformers: leave sampler= out")
    if out is not None and run is not None:
        raise ValueError(f"out={out!r}: the figures of a run go into its folder, leave it out")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise ValueError(f"out={out!r}: there is no folder {str(Path(out).absolute().parent)!r}")
    if settings["ckpt_path"] and run is None:
        return  # whose module has to be made: all options are read
    left = READ if run is None else [name for name in READ if name not in ("model", "ckpt_path")]
    for override in HydraConfig.get().overrides.task:
        name = override.lstrip("+~").partition("=")[0]
        if name.partition(".")[0].partition("@")[0] not in left and name != "algo.device":
            why = "" if run is None else ", which takes its model from run="
            raise ValueError(f"task=benchmark{why} has no use for {override}: leave it out")


def _model_of(make_module: Callable[[], Any], settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model of these settings, or of their checkpoint."""
    if not settings["ckpt_path"]:
        return _loaded(ModelConfig.of(settings["model"], "", given=True))
    module = make_module()
    return module.base_model, module.tokenizer


def _loaded(config: ModelConfig) -> tuple[Any, Any]:
    return load_model(config, trained=config.quantization == "none"), load_tokenizer(config)


def _around(folder: Path, harness: Harness) -> tuple[str, Figures, Figures]:
    """The model of a run, its figures before and after, both held in the type it started in.

    Raises:
        ValueError: it is no run's folder, or the run exported no language model.
    """
    settings, exported = folder / "config.yaml", folder / EXPORT
    if not settings.is_file():
        raise ValueError(f"run={folder} is no run's folder: name one, run=outputs/DAY/TIME")
    if not any((exported / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(
            f"run={folder}: {exported} holds no exported model, as the run has not come to its end;"
            " ckpt_path= measures a checkpoint"
        )
    if (exported / "reward_model.json").is_file():
        raise ValueError(f"run={folder}: {exported} is a reward model, which predicts no tokens")
    config = ModelConfig.of(yaml.safe_load(settings.read_text())["model"], "", given=True)
    before = harness.measure(*_loaded(config))
    written = replace(config_of_export(config, exported), dtype=harness.dtype)
    return config.name, before, harness.measure(*_loaded(written))


def _table(found: Mapping[str, Any], two: bool) -> Table:
    table = Table(title=f"lm-eval {found['lm_eval']}, {found['model']} in {found['dtype']}",
                  title_justify="left")  # fmt: skip
    for heading in ("", "examples", *(COLUMNS if two else ("value",))):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, n, before, after, difference in lines(found):
        table.add_row(name, n, *((before, after, difference) if two else (after,)))
    return table


def _written(found: Mapping[str, Any], run: str | None, out: str | None) -> str:
    """Where the figures are."""
    limited = found["asked"]["limit"] is not None
    said = ["task.limit is set: these are figures for trying out."] if limited else []
    if run is None and out is None:
        return "\n".join(said)
    path = Path(run) / BENCHMARK if run is not None else Path(str(out))
    write_text(path, json.dumps(found, indent=1, allow_nan=False))
    said.append(f"Written: {path}")
    if run is not None:
        add_benchmarks(Path(run) / EXPORT, found)
        said.append(f"See {write_run_page(read_run(run))}")
    return "\n".join(said)
