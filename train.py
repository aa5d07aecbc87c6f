"""Compose a run from ``conf/``, train, and return the metric that a sweep optimises.

python train.py algo=ppo model=hf model.name=google/gemma-2-2b algo.num_iterations=50
python train.py -m algo=ppo algo.learning_rate=1e-5,3e-5 seed=0,1
"""

import os
import sys
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import get_original_cwd, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from datamodules.atomic import explained, remove_leftovers, unwritten, write_text
from datamodules.checks import require_seed
from rlmodules import schemas
from rlmodules.checks import require_device, warn_of_hidden_datamodules
from rlmodules.resuming.folder import ForeignFolderError, held
from rlmodules.schemas.fields import CONF
from rlmodules.schemas.help import FLAGS, print_help
from rlmodules.sweeping.apart import make_plugins_known, refuse_shared_process
from rlmodules.sweeping.parent import stop_with_parent

make_plugins_known()
schemas.register()


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
    try:
        OmegaConf.to_container(cfg.data, resolve=True)
    except InterpolationKeyError as error:
        raise ValueError(
            f"{cfg.module} is of other data than {cfg.data.get('_target_')}, whose options are set"
            f" by the algorithm's ({str(error).splitlines()[0]}): leave data= out, algo= chooses it"
        ) from error
    if cfg.data.get("env") is None:
        for group in ("env", "reward", "sampler"):
            if cfg[group]:
                raise ValueError(
                    f"{cfg.module} learns from texts of a file and has no use for {group}=: leave"
                    " it out"
                )
        return
    if "_target_" not in cfg.env:  # a size or an experiment may say something all the same
        raise ValueError(
            f"{cfg.module} learns from its own episodes and needs an environment: env=text or"
            " env=math, for example (algo=sft, dpo and reward learn from a file)"
        )
    env = OmegaConf.to_container(cfg.env)
    takes_reward = "${reward}" in env.values()
    if cfg.reward and not takes_reward:
        raise ValueError(
            f"{env['_target_']} scores its episodes itself and has no use for reward=: leave it out"
        )
    if takes_reward and not cfg.reward:
        raise ValueError(f"{env['_target_']} needs a reward: reward=sentiment, for example")


def answer(cfg: DictConfig) -> None:
    """Do a ``task=`` that needs no part of a run: no model, and no folder."""
    here, made = Path.cwd(), Path(cfg.paths.output_dir)
    for folder in (made, *made.parents[:2]):  # Hydra's, which is empty
        if folder not in (here, *here.parents) and not any(folder.iterdir()):
            folder.rmdir()
    try:
        schemas.require_told(cfg, HydraConfig.get().overrides.task)
        said = instantiate(cfg.task)
    except (ValueError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, ValueError):
            sys.exit(f"\n{cause}")
        raise
    if said is not None:
        print(said)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def composed(cfg: DictConfig) -> float | None:
    """What Hydra calls with the config of one run."""
    refuse_shared_process(HydraConfig.get())
    start, folder = Path(get_original_cwd()), Path(cfg.paths.output_dir)
    warn_of_hidden_datamodules(start)
    sys.path.append(str(start))  # for reward.path=my_module:my_fn, as a user would expect
    try:
        if cfg.task and not cfg.task.get("_partial_"):
            return answer(cfg)
        from rlmodules import running  # heavy: only where something is to run

        schemas.refuse_unknown(cfg, running.TRAINER)
        check_groups(cfg)
        schemas.take_files_from(start, cfg)
        schemas.name_objectives(cfg)
        running.check_options(cfg)
        if removed := remove_leftovers(Path(cfg.paths.output_root).absolute(), below=True):
            print(f"Removed what was half written: {', '.join(map(str, removed))}")
        with held(folder):
            return running.run(cfg)
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


def trainer_arguments() -> Collection[str]:
    """What ``lightning.Trainer`` takes."""
    from rlmodules.running import TRAINER  # heavy

    return TRAINER


def main() -> None:
    """Compose and run; options that there are not end in one sentence."""
    run = print_help if FLAGS & set(sys.argv[1:]) else composed
    stop_with_parent()
    sys.argv[1:] = schemas.quote_paths(sys.argv[1:])
    full = "HYDRA_FULL_ERROR"  # has Hydra raise what it would print
    if os.environ.get(full) == "1":
        return run()
    os.environ[full] = "1"
    try:
        run()
    except (HydraException, OmegaConfBaseException) as error:  # some are OSErrors too
        sys.exit(f"\n{unwritten(error) or schemas.explain(error, trainer_arguments)}")
    except OSError as error:  # Hydra makes the folder
        said = explained(error, Path.cwd()) or f"{type(error).__name__}: {error}"
        sys.exit(f"\n{said}")
    finally:
        del os.environ[full]


if __name__ == "__main__":
    main()
