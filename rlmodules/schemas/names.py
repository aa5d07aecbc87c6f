"""Names that no option has: each is refused in a sentence that says which one was meant.

Hydra's own message for an unknown option advises ``+algo.lr=0.5``, which adds it where nothing
reads it.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlmodules.checks import nearest
from rlmodules.resuming.changes import references
from rlmodules.schemas.fields import CONF, every_field

SYNONYMS = {
    # name elsewhere (TRL, transformers, PEFT) -> names here, of which the run's algorithm has one
    "adam_beta1": ("algo.optimizer.betas",),
    "adam_beta2": ("algo.optimizer.betas",),
    "adam_epsilon": ("algo.optimizer.eps",),
    "attn": ("attn_implementation",),
    "batch": ("batch_size",),
    "bf16": ("trainer.precision",),
    "clip_range": ("clip_ratio",),
    "cliprange": ("clip_ratio",),
    "cliprange_value": ("value_clip",),
    "dataset_name": ("data.path",),
    "epochs": ("num_epochs", "ppo_epochs", "num_iterations"),
    "epsilon_low": ("epsilon",),
    "eval_steps": ("eval_every",),
    "eval_strategy": ("eval_every",),
    "fp16": ("trainer.precision",),
    "grad_clip": ("max_grad_norm",),
    "init_kl_coef": ("kl_penalty_coef",),
    "kl": ("kl_penalty_coef", "beta"),
    "kl_beta": ("beta", "kl_penalty_coef"),
    "kl_coef": ("kl_penalty_coef", "beta"),
    "kl_horizon": ("kl_horizon",),
    "lora_alpha": ("model.lora.alpha",),
    "lora_dropout": ("model.lora.dropout",),
    "lora_r": ("model.lora.r",),
    "lora_rank": ("model.lora.r",),
    "lora_target_modules": ("model.lora.target_modules",),
    "lr": ("learning_rate",),
    "lr_scheduler": ("lr_scheduler_type",),
    "max_completion_length": ("max_new_tokens",),
    "max_epochs": ("num_epochs", "num_iterations"),
    "max_steps": ("trainer.max_steps",),
    "minibatch_size": ("mini_batch_size",),
    "model_name_or_path": ("model.name",),
    "num_mini_batches": ("mini_batch_size",),
    "num_ppo_epochs": ("ppo_epochs",),
    "num_train_epochs": ("num_epochs", "num_iterations"),
    "optim": ("algo.optimizer.name",),
    "optimizer": ("algo.optimizer.name",),
    "per_device_eval_batch_size": ("data.eval_batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "pretrained": ("name",),
    "rank": ("r",),
    "response_length": ("max_new_tokens",),
    "save_steps": ("save_every",),
    "schedule": ("lr_scheduler_type",),
    "target": ("kl_target",),
    "torch_dtype": ("dtype",),
    "total_episodes": ("num_iterations",),
    "train_batch_size": ("batch_size",),
    "vf_coef": ("value_coef",),
    "vllm_importance_sampling_cap": ("sampler_is_cap",),
    "vllm_importance_sampling_clip_max": ("sampler_is_cap",),
    "vllm_importance_sampling_correction": ("sampler_is",),
    "vllm_importance_sampling_mode": ("sampler_is",),
}
LAUNCHERS = {
    "joblib": "joblib",
    "ray": "ray",
    "ray_aws": "ray",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
}
"""Launchers that other packages bring -> the extra that installs these."""
ADDED = ("callbacks", "logger")
"""Groups to which a run may add parts of its own."""
ROOT = {"module", "suggested", "hydra", *(path.name for path in CONF.iterdir() if path.is_dir())}
"""What stands at the top of every run besides the values of ``train.yaml``."""


def explain(error: Exception, trainer: Callable[[], Collection[str]]) -> str:
    """What could not be composed, as one sentence with the name that was probably meant.

    Args:
        trainer: tells the arguments of ``lightning.Trainer``, which takes seconds to import.
    """
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if group == "hydra/launcher" and option in LAUNCHERS:
            return (
                f"hydra/launcher={option} is of a package that is not installed:"
                f' pip install "rlmodules[{LAUNCHERS[option]}]"'
            )
        options = [name for name in error.options if name != "schema"]
        return f"there is no {group}={option}" + _hint(nearest(option, options), options)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    # Ctrl-C while a config is made can come out of OmegaConf as an error without a message.
    message, *lines = str(error).splitlines() or [f"{type(error).__name__}, without a message"]
    if isinstance(error, OverrideParseException):
        return f'{message}: quote what is text, as in \'data.prompts=["Say hello!", "What, now?"]\''
    if message.endswith("raised while composing config:") and lines:
        return _in_file(message, lines)
    if not isinstance(cause, OmegaConfBaseException):
        return message
    if "Could not override" in message:
        path, parent = str(cause.full_key or cause.key), cause.parent_node
        group, _, name = path.rpartition(".")
        more = trainer() if group == "trainer" else ()
        if name in more:
            return f"no `{name}` in trainer yet: write +{path}=..., which hands it on to Lightning"
        siblings = {*(parent if isinstance(parent, DictConfig) else ()), *more}
        return unknown(path, siblings, whole=_root(parent)) + (
            f" (+{path}=... adds it)" if group in ADDED or _takes_any(parent, group) else ""
        )
    override = message.removeprefix("Error merging override ")
    if "is not a subclass of" in str(cause):
        option = override.partition("=")[0]
        return f"{override}: {option} holds several options, as {option}.NAME=... sets one"
    return f"{override}: {str(cause).splitlines()[0]}"


def _in_file(message: str, lines: Sequence[str]) -> str:
    """What a file of a group says that the others do not take, with the option that it is."""
    file = message.split("'")[1]
    told = dict(line.strip().partition(": ")[::2] for line in lines[1:])
    option = told.get("full_key")
    group = file.rpartition("/")[0] or "file"
    where = f" ({option})" if option else ""
    owner = (option or "").partition(".")[0]
    also = f" or {owner}" if owner in ("algo", "env", "reward") and owner != group else ""
    return f"{file}: {lines[0]}{where}: mend it in that file, or take another {group}{also}"


def unknown(path: str, siblings: Collection[Any], whole: DictConfig | None = None) -> str:
    """The sentence for an option that does not exist.

    Args:
        path: ``algo.lr``.
        siblings: the names that there are in its place.
        whole: the run's config, for options that stand elsewhere.
    """
    group, _, name = path.rpartition(".")
    known = [str(key) for key in siblings if not str(key).startswith("_")]
    leaves = [] if whole is None else list(_leaves(whole))
    elsewhere = {leaf.rpartition(".")[2]: leaf for leaf in leaves}
    near = None
    for wanted in (*SYNONYMS.get(name, ()), name):
        exact = wanted in leaves  # several options may end alike: ``name``
        leaf = wanted if exact else elsewhere.get(wanted.rpartition(".")[2], path)
        near = near or (wanted if wanted in known else leaf if leaf != path else None)
    return f"no `{name}` in {group or 'the config'}{_hint(near or nearest(name, known), known)}"


def refuse_unknown(cfg: DictConfig, trainer: Collection[str]) -> None:
    """Refuse what ``+`` or a file added where nothing reads it.

    Args:
        cfg: a composed run.
        trainer: arguments of ``lightning.Trainer``.

    Raises:
        ValueError: names the first such option, and the one that was probably meant.
    """
    raw = OmegaConf.to_container(cfg)
    read = " ".join(text for text in _texts(raw) if "${" in text)
    root = ROOT | {field.path.partition(".")[0] for field in every_field() if not field.option}
    closed: list[tuple[str, Mapping[Any, Any], Collection[str]]] = [
        ("", cfg, root),
        ("trainer", cfg.trainer, {*trainer, "_target_", "_convert_"}),
        *(_of_group(cfg, group) for group in ("paths", "export")),
        *((group, cfg[group], ()) for group in ("task",) if "_target_" not in (cfg[group] or {})),
        *_typed(cfg, ""),
    ]
    for prefix, node, known in closed:
        for name in node:
            path = f"{prefix}.{name}" if prefix else str(name)
            if name not in known and not re.search(rf"[{{:,.]{re.escape(path)}\b", read):
                raise ValueError(unknown(path, known, whole=cfg))


def require_told(cfg: DictConfig, overrides: Collection[str]) -> None:
    """Check what a ``task=`` is told that reads nothing of a run's config but its own options.

    Raises:
        ValueError: it lacks one, or is told another.
    """
    named = references(OmegaConf.to_container(cfg.task)).values()
    own = {name for names in named for name in names}
    if missing := sorted(name for name in own if OmegaConf.is_missing(cfg, name)):
        raise ValueError(f"what was chosen leaves open: {'=..., '.join(missing)}=...")
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        if name not in own and name.partition(".")[0] != "task":
            raise ValueError(f"this task has no use for {override}: leave it out")


def name_objectives(cfg: DictConfig) -> None:
    """Let ``data.objectives`` name the algorithm's, where it alone is given: they are one."""
    given = "objectives" in cfg.data and not OmegaConf.is_interpolation(cfg.data, "objectives")
    if given and cfg.data.objectives is not None and "objectives" in cfg.algo:
        default = OmegaConf.structured(OmegaConf.get_type(cfg.algo)).objectives
        if cfg.algo.objectives == default:
            cfg.algo.objectives = cfg.data.objectives


def refuse_contradictions(settings: Mapping[str, Any]) -> None:
    """Refuse two values for what is one: the data's sizes are the algorithm's, and there is one
    seed.

    Args:
        settings: of a run, as plain values.

    Raises:
        ValueError: names both options.
    """
    algo, data = settings["algo"], settings["data"]
    one = [("algo.seed", algo.get("seed"), "seed", settings["seed"])]
    one += [(f"data.{n}", data[n], f"algo.{n}", algo[n]) for n in data if n in algo]
    one += [
        ("data.epochs", data["epochs"], f"algo.{n}", algo[n])
        for n in ("ppo_epochs", "num_epochs")
        if n in algo and "epochs" in data
    ]
    for name, value, owner, other in one:
        if value != other:
            raise ValueError(f"{name}={value!r} contradicts {owner}={other!r}: set {owner} alone")


def _of_group(cfg: DictConfig, group: str) -> tuple[str, DictConfig, set[str]]:
    paths = (field.path for field in every_field())
    return group, cfg[group], {p.partition(".")[2] for p in paths if p.startswith(f"{group}.")}


def _typed(node: DictConfig, prefix: str) -> Iterator[tuple[str, DictConfig, set[str]]]:
    """Every node that a schema describes, with the names that it has there."""
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            kind, path = OmegaConf.get_type(child), f"{prefix}{name}"
            if is_dataclass(kind):
                yield path, child, {field.name for field in fields(kind)}
            if not child._is_interpolation():
                yield from _typed(child, f"{path}.")


def _takes_any(node: Any, group: str) -> bool:
    """Whether a node is the call of something that no schema describes."""
    typed = isinstance(node, DictConfig) and is_dataclass(OmegaConf.get_type(node))
    return group != "trainer" and not typed and "_target_" in (node or {})


def _hint(near: str | None, known: Collection[str]) -> str:
    return (
        f": did you mean {near}?" if near else f": there are {', '.join(sorted(known)) or 'none'}"
    )


def _root(node: Any) -> DictConfig | None:
    while node is not None and node._get_parent() is not None:
        node = node._get_parent()
    return node


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Paths of all options, those of parts that a run may leave out excepted."""
    for name in node:
        child, path = node._get_node(name), f"{prefix}{name}"
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            if path not in ADDED:
                yield from _leaves(child, f"{path}.")
        else:
            yield path


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
