"""One run, from its composed config: the parts that it names, put together and trained.

Everything heavy that a run needs is imported here, so that ``train.py`` can answer what needs none.
"""

import gc
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
    HealthGuard,
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
from rlmodules.tasks.evaluate import Evaluation, judge_export
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
    settings, folder = settings_of(cfg), Path(cfg.paths.output_dir)
    loggers = [instantiate(logger) for logger in cfg.logger.values() if logger]
    parts = Parts(cfg, settings, loggers)
    trainer, algorithm = parts.trainer, get_class(cfg.module)
    roots = (cfg.paths.output_root, cfg.paths.sweep_root)
    ckpt_path = parts.record.find(cfg.ckpt_path, roots, trainer, algorithm.__name__)
    require_own(folder, ckpt_path)
    parts.make_module()
    with tracked(trainer, settings, folder, ckpt_path):
        if trainer.is_global_zero:
            (folder / RESULT).unlink(missing_ok=True)  # of the shorter run that goes on
            write_text(folder / "config.yaml", OmegaConf.to_yaml(settings))
            note_start(cfg, parts.module)
        del trainer
        while (rolled_back := parts.fit(ckpt_path)) is not None:
            ckpt_path = rolled_back
            parts.clear()
            parts = Parts(cfg, settings, loggers)  # as in a process that goes on with a run
            parts.make_module()
        value = parts.optimized.value(parts.trainer)
        conclude(parts.trainer, value)
    return value


class Parts:
    """What trains, until the run ends or is rolled back.

    Args:
        settings: of the run, as ``settings_of`` has them.
        loggers: the run's, which outlast a rollback.
    """

    def __init__(self, cfg: DictConfig, settings: dict[str, Any], loggers: list[Any]) -> None:
        L.seed_everything(cfg.seed, verbose=False)
        self.cfg, self.settings = cfg, settings
        self.record = record_of(cfg, settings)
        named = any(o.startswith("optimized_metric=") for o in HydraConfig.get().overrides.task)
        self.optimized = OptimizedMetric(cfg.optimized_metric, required=named)
        callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
        for callback in callbacks:
            if isinstance(callback, HealthGuard):
                callback.restarts = True
        first, progress = LongestBatchFirst(settings), ProgressFile(cfg.paths.output_dir)
        before = [DataCheck(inspecting()), self.record, progress]
        self.trainer = make_trainer(
            cfg.trainer,
            callbacks=[*before, *callbacks, self.optimized, first],
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
        )

    def make_module(self) -> None:
        """Load the model, and what it learns from."""
        self.module = get_class(self.cfg.module)(self.settings["algo"], self.settings["model"])
        self.datamodule = instantiate(self.cfg.data)
        self.serving = sampler_of(self.cfg, self.trainer)

    def fit(self, ckpt_path: Path | None) -> Path | None:
        """Train to the end and return None, or the checkpoint that the run was rolled back to."""
        trainer, module, datamodule = self.trainer, self.module, self.datamodule
        with self.serving(module, Path(self.cfg.paths.output_dir)):
            if ckpt_path is None:
                trainer.validate(module, datamodule, verbose=False)  # what there is to improve on
            try:
                trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
            except Exception as error:
                if (rolled_back := getattr(error, "rolled_back", None)) is None:
                    raise
                return Path(rolled_back)
            judge_export(module, datamodule, trainer, partial(silent_trainer, self.cfg.trainer))
        return None

    def clear(self) -> None:
        """Let go of all that takes memory, before the same is made anew."""
        del self.trainer, self.module, self.datamodule, self.serving
        gc.collect()


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


def run_task(cfg: DictConfig) -> float | None:
    """Another ``task=`` than training, done with the same parts; returns what ``train`` returns of
    a model that is evaluated, else None."""
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
        told = instantiate(cfg.task)(make_module, datamodule, trainer, settings)
    print(told)
    return told.value if isinstance(told, Evaluation) else None


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
