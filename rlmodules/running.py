"""One run, from its composed config: the parts that it names, put together and trained.

Everything heavy that a run needs is imported here, so that ``train.py`` can answer what needs none.
"""

import inspect
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from datamodules.atomic import write_text
from rlmodules.callbacks import (
    AtomicCheckpointIO,
    DataCheck,
    OptimizedMetric,
    ProgressFile,
    RunIsComplete,
    RunRecord,
)
from rlmodules.checks import defaults_of, naming
from rlmodules.memory.probe import LongestBatchFirst, require_choice
from rlmodules.models import ModelConfig, resolve_precision
from rlmodules.optimizers.config import require_optimizer
from rlmodules.quiet import hide_bars, ignore_remarks
from rlmodules.reports.environment import write_start
from rlmodules.resuming.changes import flatten, references
from rlmodules.resuming.folder import is_follower, require_own
from rlmodules.schemas import refuse_contradictions
from rlmodules.sweeping.jobs import RESULT, reported, write_result
from rlmodules.tasks.evaluate import judge_export
from rlmodules.trackers.rows import conclude, tracked
from rlmodules.trainer_options import check_shared_out, check_trainer, several_processes

TRAINER = frozenset(inspect.signature(L.Trainer).parameters)
"""Arguments of ``lightning.Trainer``."""
hide_bars()
ignore_remarks()


def run(cfg: DictConfig) -> float | None:
    """Train, or do the ``task=`` that is another; returns what ``train`` returns."""
    folder = Path(cfg.paths.output_dir)
    try:
        value = run_task(cfg) if cfg.task else train(cfg)
    except RunIsComplete as complete:  # what is called until it succeeds has succeeded
        print(complete)
        value = reported(folder, cfg.optimized_metric)
    if not is_follower():
        write_result(folder, cfg.optimized_metric, value)
    return value


def train(cfg: DictConfig) -> float | None:
    """One run; returns ``optimized_metric``, or None where there is no such metric."""
    L.seed_everything(cfg.seed, verbose=False)
    settings = settings_of(cfg)
    record = record_of(cfg, settings)
    named = any(o.startswith("optimized_metric=") for o in HydraConfig.get().overrides.task)
    optimized = OptimizedMetric(cfg.optimized_metric, required=named)
    progress = ProgressFile(cfg.paths.output_dir)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    first = LongestBatchFirst(settings)
    trainer = make_trainer(
        cfg.trainer,
        callbacks=[DataCheck(inspecting()), record, progress, *callbacks, optimized, first],
        logger=[instantiate(logger) for logger in cfg.logger.values() if logger],
        plugins=[AtomicCheckpointIO()],
    )
    algorithm, folder = get_class(cfg.module), Path(cfg.paths.output_dir)
    roots = (cfg.paths.output_root, cfg.paths.sweep_root)
    ckpt_path = record.find(cfg.ckpt_path, roots, trainer, algorithm.__name__)
    require_own(folder, ckpt_path)
    module = algorithm(settings["algo"], settings["model"])
    datamodule, serving = instantiate(cfg.data), sampler_of(cfg, trainer)
    with tracked(trainer, settings, folder, ckpt_path), serving(module, folder):
        if trainer.is_global_zero:
            (folder / RESULT).unlink(missing_ok=True)  # of the shorter run that goes on
            write_text(folder / "config.yaml", OmegaConf.to_yaml(settings))
            note_start(cfg, module)
        if ckpt_path is None:
            trainer.validate(module, datamodule, verbose=False)  # what there is to improve on
        trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
        judge_export(module, datamodule, trainer, partial(silent_trainer, cfg.trainer))
        value = optimized.value(trainer)
        conclude(trainer, value)
    return value


def sampler_of(cfg: DictConfig, trainer: L.Trainer) -> Callable[..., AbstractContextManager[None]]:
    """What has a module sample as ``cfg.sampler`` says, meanwhile (``VLLM.serving``).

    Raises:
        ValueError: several processes would sample.
    """
    if not cfg.sampler:
        return lambda module, folder, **_: nullcontext()
    if trainer.world_size > 1:
        raise ValueError(
            f"sampler={HydraConfig.get().runtime.choices.sampler} serves one process, and"
            f" {trainer.world_size} are asked for: set sampler=own, or trainer.devices=1"
        )
    return instantiate(cfg.sampler).serving


def note_start(cfg: DictConfig, module: L.LightningModule) -> None:
    """Write what the run is made of, for its report."""
    write_start(
        Path(cfg.paths.output_dir),
        overrides=list(HydraConfig.get().overrides.task),
        seed=cfg.seed,
        model=cfg.model.name,
        defaults={"algo": defaults_of(module.config), "model": asdict(ModelConfig())},
    )


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """What the run is told, of which nothing is about the sweep that it may be a job of."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    settings.pop("sweep")
    if not settings["sampler"]:  # our own, of which there is nothing to say
        del settings["sampler"]
    return settings


def inspecting() -> str:
    """The command that shows what this run is trained on."""
    program = Path(sys.argv[0]).name
    start = ["python", program] if program.endswith(".py") else [program]
    return shlex.join([*start, "task=inspect", *HydraConfig.get().overrides.task])


def record_of(cfg: DictConfig, settings: dict[str, Any]) -> RunRecord:
    """What the run is, for itself to go on another time."""
    named = references(OmegaConf.to_container(cfg))
    known = dict(flatten(settings | {"started_by": "train.py"}))
    return RunRecord(known, named, cfg.resume.allow)


def run_task(cfg: DictConfig) -> None:
    """Another ``task=`` than training, done with the same parts."""
    L.seed_everything(cfg.seed, verbose=False)
    settings = settings_of(cfg)
    trainer = silent_trainer(cfg.trainer)
    algorithm = get_class(cfg.module)
    roots = (cfg.paths.output_root, cfg.paths.sweep_root)
    record = record_of(cfg, settings)
    weights = record.find_weights(cfg.ckpt_path, roots, trainer, algorithm.__name__)
    if weights is not None:
        settings["ckpt_path"] = str(weights[0])

    serving, meanwhile = sampler_of(cfg, trainer), ExitStack()

    def make_module() -> L.LightningModule:
        module = algorithm(settings["algo"], settings["model"])
        if weights is not None:
            module.load_weights(weights[1])
        meanwhile.enter_context(serving(module, cfg.paths.output_dir, early=False))
        return module

    datamodule = instantiate(cfg.data)
    with meanwhile:
        print(instantiate(cfg.task)(make_module, datamodule, trainer, settings))


def make_trainer(options: DictConfig, **parts: Any) -> L.Trainer:
    """The Trainer of ``cfg.trainer``; what it refuses is named as the option that says it."""
    given = {"precision": resolve_precision(options.precision)} | several_processes(options)
    make = partial(instantiate, {"_target_": options._target_}, **parts)
    return naming(make, "trainer", {k: v for k, v in options.items() if k != "_target_"} | given)


def silent_trainer(options: DictConfig) -> L.Trainer:
    """One that evaluates and leaves nothing behind."""
    return make_trainer(options, logger=False, enable_progress_bar=False)


def check_options(cfg: DictConfig) -> None:
    """
    Raises:
        ValueError: an option contradicts another, or the Trainer is told what nothing reads.
    """
    settings = OmegaConf.to_container(cfg, resolve=True)
    refuse_contradictions(settings)
    require_choice(settings)
    if not cfg.task:
        require_optimizer(cfg.algo.optimizer.name, cfg.algo.device)
    targets = [part["_target_"] for part in settings["callbacks"].values() if part]
    check_trainer(settings["trainer"], settings["algo"], cfg.paths.output_dir, targets)
    check_shared_out(settings)
