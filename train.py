"""Compose a run from ``conf/``, train, and return the metric that a sweep optimises.

python train.py algo=ppo model=hf model.name=google/gemma-2-2b algo.num_iterations=50
python train.py -m algo=ppo algo.learning_rate=1e-5,3e-5 seed=0,1
"""

import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers.utils import logging as transformers_logging

from rlmodules import schemas
from rlmodules.callbacks import AtomicCheckpointIO, RunRecord
from rlmodules.checks import warn_of_hidden_datamodules
from rlmodules.models import resolve_precision
from rlmodules.resuming.changes import flatten, references

schemas.register()
TRAINER = frozenset(inspect.signature(L.Trainer).parameters)
transformers_logging.disable_progress_bar()
for message in (  # Lightning on torch, PEFT, Lightning where nothing is held out
    ".*LeafSpec.*",
    ".*is_gradient_checkpointing.*",
    ".*length of `list` across ranks is zero.*",
):
    warnings.filterwarnings("ignore", message=message)


def train(cfg: DictConfig) -> float | None:
    """One run; returns ``optimized_metric``, or None where there is no such metric."""
    L.seed_everything(cfg.seed, verbose=False)
    settings = OmegaConf.to_container(cfg, resolve=True)
    record = RunRecord(
        dict(flatten(settings | {"started_by": "train.py"})),
        references(OmegaConf.to_container(cfg)),
        cfg.resume.allow,
    )
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    trainer = instantiate(
        cfg.trainer,
        precision=resolve_precision(cfg.trainer.precision),
        callbacks=[record, *callbacks],
        logger=[instantiate(logger) for logger in cfg.logger.values() if logger],
        plugins=[AtomicCheckpointIO()],
    )
    algorithm = get_class(cfg.module)
    roots = (cfg.paths.output_root, "multirun")
    ckpt_path = record.find(cfg.ckpt_path, roots, trainer, algorithm.__name__)
    module = algorithm(settings["algo"], settings["model"])
    datamodule = instantiate(cfg.data)
    if trainer.is_global_zero:
        OmegaConf.save(settings, Path(cfg.paths.output_dir) / "config.yaml")
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)

    if ckpt_path is None:
        trainer.validate(module, datamodule, verbose=False)  # what there is to improve on
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    metric = trainer.callback_metrics.get(cfg.optimized_metric)
    return None if metric is None else float(metric)


def run_task(cfg: DictConfig) -> None:
    """Another ``task=`` than training, done with the same parts."""
    L.seed_everything(cfg.seed, verbose=False)
    settings = OmegaConf.to_container(cfg, resolve=True)
    module = get_class(cfg.module)(settings["algo"], settings["model"])
    datamodule = instantiate(cfg.data)
    trainer = instantiate(
        cfg.trainer,
        precision=resolve_precision(cfg.trainer.precision),
        logger=False,
        enable_progress_bar=False,
    )
    print(instantiate(cfg.task)(module, datamodule, trainer, settings))


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
        ValueError: a value is missing, or a group is missing or was chosen though nothing reads it.
    """
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
    env = OmegaConf.to_container(cfg.env)
    takes_reward = "${reward}" in env.values()
    if cfg.reward and not takes_reward:
        raise ValueError(
            f"{env['_target_']} scores its episodes itself and has no use for reward=: leave it out"
        )
    if takes_reward and not cfg.reward:
        raise ValueError(f"{env['_target_']} needs a reward: reward=sentiment, for example")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def composed(cfg: DictConfig) -> float | None:
    """What Hydra calls with the config of one run."""
    warn_of_hidden_datamodules(Path.cwd())
    sys.path.append(str(Path.cwd()))  # for reward.path=my_module:my_fn, as a user would expect
    try:
        schemas.refuse_unknown(cfg, TRAINER)
        check_groups(cfg)
        return run_task(cfg) if cfg.task else train(cfg)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        log = Path(cfg.paths.output_dir) / "error.txt"
        log.write_text(traceback.format_exc())
        sys.exit(f"\n{type(cause).__name__}: {cause}\n(the traceback is in {log})")


def main() -> None:
    """Compose and run; options that there are not end in one sentence."""
    full = "HYDRA_FULL_ERROR"  # has Hydra raise what it would print
    if os.environ.get(full) == "1":
        return composed()
    os.environ[full] = "1"
    try:
        composed()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"\n{schemas.explain(error, TRAINER)}")
    finally:
        del os.environ[full]


if __name__ == "__main__":
    main()
