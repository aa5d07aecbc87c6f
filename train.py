"""Compose a run from ``conf/``, train, and return the metric that a sweep optimises.

python train.py algo=ppo model=hf model.name=google/gemma-2-2b algo.num_iterations=50
python train.py -m algo=ppo algo.learning_rate=1e-5,3e-5 seed=0,1
"""

import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import get_class, get_original_cwd, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.atomic import explained, remove_leftovers, unwritten, write_text
from datamodules.checks import require_seed
from rlmodules import schemas
from rlmodules.callbacks import (
    AtomicCheckpointIO,
    DataCheck,
    OptimizedMetric,
    RunIsComplete,
    RunRecord,
)
from rlmodules.checks import naming, require_device, warn_of_hidden_datamodules
from rlmodules.models import resolve_precision
from rlmodules.quiet import hide_bars, ignore_remarks
from rlmodules.resuming.changes import flatten, references
from rlmodules.resuming.folder import ForeignFolderError, held, require_own
from rlmodules.tasks.evaluate import judge_export
from rlmodules.trainer_options import check_trainer, several_processes

schemas.register()
TRAINER = frozenset(inspect.signature(L.Trainer).parameters)
hide_bars()
ignore_remarks()


def train(cfg: DictConfig) -> float | None:
    """One run; returns ``optimized_metric``, or None where there is no such metric."""
    L.seed_everything(cfg.seed, verbose=False)
    settings = OmegaConf.to_container(cfg, resolve=True)
    record = record_of(cfg, settings)
    named = any(o.startswith("optimized_metric=") for o in HydraConfig.get().overrides.task)
    optimized = OptimizedMetric(cfg.optimized_metric, required=named)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    trainer = make_trainer(
        cfg.trainer,
        callbacks=[DataCheck(inspecting()), record, *callbacks, optimized],
        logger=[instantiate(logger) for logger in cfg.logger.values() if logger],
        plugins=[AtomicCheckpointIO()],
    )
    algorithm = get_class(cfg.module)
    roots = (cfg.paths.output_root, cfg.paths.sweep_root)
    ckpt_path = record.find(cfg.ckpt_path, roots, trainer, algorithm.__name__)
    require_own(Path(cfg.paths.output_dir), ckpt_path)
    module = algorithm(settings["algo"], settings["model"])
    datamodule = instantiate(cfg.data)
    if trainer.is_global_zero:
        write_text(Path(cfg.paths.output_dir) / "config.yaml", OmegaConf.to_yaml(settings))
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)

    if ckpt_path is None:
        trainer.validate(module, datamodule, verbose=False)  # what there is to improve on
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    judge_export(module, datamodule, trainer, partial(silent_trainer, cfg.trainer))
    return optimized.value(trainer)


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
    settings = OmegaConf.to_container(cfg, resolve=True)
    trainer = silent_trainer(cfg.trainer)
    algorithm = get_class(cfg.module)
    roots = (cfg.paths.output_root, cfg.paths.sweep_root)
    record = record_of(cfg, settings)
    weights = record.find_weights(cfg.ckpt_path, roots, trainer, algorithm.__name__)
    if weights is not None:
        settings["ckpt_path"] = str(weights[0])

    def make_module() -> L.LightningModule:
        module = algorithm(settings["algo"], settings["model"])
        if weights is not None:
            module.load_weights(weights[1])
        return module

    datamodule = instantiate(cfg.data)
    print(instantiate(cfg.task)(make_module, datamodule, trainer, settings))


def make_trainer(options: DictConfig, **parts: Any) -> L.Trainer:
    """The Trainer of ``cfg.trainer``; what it refuses is named as the option that says it."""
    given = {"precision": resolve_precision(options.precision)} | several_processes(options)
    make = partial(instantiate, {"_target_": options._target_}, **parts)
    return naming(make, "trainer", {k: v for k, v in options.items() if k != "_target_"} | given)


def silent_trainer(options: DictConfig) -> L.Trainer:
    """One that evaluates and leaves nothing behind."""
    return make_trainer(options, logger=False, enable_progress_bar=False)


def left_open(group: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every value that has to be given and was not, as it is given: ``env.path=...``."""
    for name, value in group.items():
        if value in ("???", schemas.REQUIRED):
            yield f"{prefix}{name}=..."
        elif isinstance(value, dict):
            yield from left_open(value, f"{prefix}{name}.")


def check_groups(cfg: DictConfig) -> None:
    """
    Raises:
        ValueError: a value is missing, or a group is missing or was chosen though nothing reads it;
            a seed is none; or this machine has not the device.
    """
    require_seed("seed", cfg.seed)
    require_device(cfg.algo.device)
    if missing := list(left_open(OmegaConf.to_container(cfg))):
        raise ValueError(f"what was chosen leaves open: {', '.join(missing)}")
    if cfg.data.get("env") is None:
        for group in ("env", "reward"):
            if cfg[group]:
                raise ValueError(
                    f"{cfg.module} learns from preferences and has no use for {group}=: leave it"
                    " out"
                )
        return
    if not cfg.env:
        raise ValueError(
            f"{cfg.module} learns from its own episodes and needs an environment: env=text or"
            " env=math, for example (algo=dpo and algo=reward learn from pairs)"
        )
    env = OmegaConf.to_container(cfg.env)
    takes_reward = "${reward}" in env.values()
    if cfg.reward and not takes_reward:
        raise ValueError(
            f"{env['_target_']} scores its episodes itself and has no use for reward=: leave it out"
        )
    if takes_reward and not cfg.reward:
        raise ValueError(f"{env['_target_']} needs a reward: reward=sentiment, for example")


def check_options(cfg: DictConfig) -> None:
    """
    Raises:
        ValueError: an option contradicts another, or the Trainer is told what nothing reads.
    """
    settings = OmegaConf.to_container(cfg, resolve=True)
    schemas.refuse_contradictions(settings)
    targets = [part["_target_"] for part in settings["callbacks"].values() if part]
    check_trainer(settings["trainer"], settings["algo"], cfg.paths.output_dir, targets)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def composed(cfg: DictConfig) -> float | None:
    """What Hydra calls with the config of one run."""
    start, folder = Path(get_original_cwd()), Path(cfg.paths.output_dir)
    warn_of_hidden_datamodules(start)
    sys.path.append(str(start))  # for reward.path=my_module:my_fn, as a user would expect
    try:
        schemas.refuse_unknown(cfg, TRAINER)
        check_groups(cfg)
        schemas.take_files_from(start, cfg)
        schemas.name_objectives(cfg)
        check_options(cfg)
        if removed := remove_leftovers(Path(cfg.paths.output_root).absolute(), below=True):
            print(f"Removed what was half written: {', '.join(map(str, removed))}")
        with held(folder):
            return run_task(cfg) if cfg.task else train(cfg)
    except RunIsComplete as complete:  # what is called until it succeeds has succeeded
        print(complete)
        return None
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        sys.exit(f"\n{told(cause, folder)}")


def told(error: BaseException, folder: Path) -> str:
    """What ended a run, in a sentence; the traceback goes to its folder, if that is its own."""
    full = explained(error, folder)
    said, log = full or f"{type(error).__name__}: {error}", folder / "error.txt"
    if isinstance(error, ForeignFolderError):
        return said
    try:
        write_text(log, traceback.format_exc())
    except OSError:
        return full or f"{traceback.format_exc()}\n{said}"
    return f"{said}\n(the traceback is in {log})"


def main() -> None:
    """Compose and run; options that there are not end in one sentence."""
    full = "HYDRA_FULL_ERROR"  # has Hydra raise what it would print
    if os.environ.get(full) == "1":
        return composed()
    os.environ[full] = "1"
    try:
        composed()
    except (HydraException, OmegaConfBaseException) as error:  # some are OSErrors too
        sys.exit(f"\n{unwritten(error) or schemas.explain(error, TRAINER)}")
    except OSError as error:  # Hydra makes the folder
        said = explained(error, Path.cwd()) or f"{type(error).__name__}: {error}"
        sys.exit(f"\n{said}")
    finally:
        del os.environ[full]


if __name__ == "__main__":
    main()
