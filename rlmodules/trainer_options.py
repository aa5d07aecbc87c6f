"""What ``lightning.Trainer`` may be told besides what the algorithm's own options say.

Every argument of it is handed on as it is, refused with the option that it would contradict, or
refused because nothing here would read it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rlmodules.checks import device_options

MANY_PROCESSES = "ddp_find_unused_parameters_true"
"""Critic warm-up and a KL early stop leave some parameters unused."""
STRATEGIES = ("auto", MANY_PROCESSES)
SHARDED = "rlmodules.strategies.Sharded"
OF_OURS = (SHARDED, "rlmodules.strategies.Replicated")
"""What ``trainer=fsdp`` and ``trainer=ddp`` take."""
UNREAD = {
    # argument -> (the values that ask for nothing, what to do instead)
    "callbacks": ((None,), "add +callbacks.NAME._target_=..."),
    "fast_dev_run": ((False, 0), "it runs a part of an iteration; use experiment=smoke"),
    "gradient_clip_algorithm": (
        (None, "norm"),
        "gradients are clipped by norm: algo.max_grad_norm",
    ),
    "inference_mode": (
        (False,),
        "what is computed while sampling is used in training again, which inference mode forbids",
    ),
    "limit_predict_batches": ((None, 1.0), "nothing is predicted"),
    "limit_test_batches": ((None, 1.0), "nothing is tested: task=evaluate judges held-out data"),
    "logger": (
        (None,),
        "choose loggers with logger=: default, wandb, mlflow, many, none...",
    ),
    "model_registry": ((None,), "the trained model is in the run's folder model/"),
    "overfit_batches": ((0, 0.0), "give a smaller data.path and data.eval_path"),
    "plugins": ((None,), "checkpoints have a plugin of our own"),
    "reload_dataloaders_every_n_epochs": ((0,), "the data keep their place by themselves"),
    "sync_batchnorm": ((False,), "language models have no batch normalisation"),
    "use_distributed_sampler": (
        (False,),
        "the data modules give each process its share themselves",
    ),
}
UNREAD_ONLINE = {
    "limit_train_batches": ((None, 1.0), "the size of an iteration is algo.batch_size"),
    "log_every_n_steps": ((None, 1), "metrics are of whole iterations, and each is logged"),
}
OURS = ("rlmodules.", "lightning.pytorch.callbacks.ModelCheckpoint")
"""Callbacks whose ``_target_`` begins so stop no run early."""


def check_trainer(
    options: Mapping[str, Any],
    algo: Mapping[str, Any],
    folder: str,
    callbacks: Iterable[str] = (),
) -> None:
    """Refuse what would be ignored, or contradict an option of the algorithm.

    Args:
        options: arguments of ``lightning.Trainer``; one that is missing asks for nothing.
        algo: the algorithm's settings by name.
        folder: the run's.
        callbacks: modules or ``_target_`` of the run's callbacks.

    Raises:
        ValueError: names the argument, its value and what to set instead.
    """
    online = "num_iterations" in algo
    for name, (harmless, instead) in (UNREAD | (UNREAD_ONLINE if online else {})).items():
        if name in options and options[name] not in harmless:
            raise ValueError(f"trainer.{name}={options[name]!r} cannot be used: {instead}")
    owned = _owned(options, algo, online) | {"default_root_dir": (folder, "paths.output_dir")}
    for name, (value, option) in owned.items():
        if name in options and options[name] != value:
            raise ValueError(
                f"trainer.{name}={options[name]!r} contradicts {option}, which says {value!r}:"
                f" set {option} alone"
            )
    _check_ends(options, algo, callbacks, online)
    _check_hardware(options, algo)


def check_given(given: Mapping[str, Any], config: Any, num_epochs: int, folder: str) -> None:
    """``check_trainer`` of what a script gives besides; its callbacks come beside our own, and its
    logger instead of ours."""
    length = "num_iterations" if hasattr(config, "num_iterations") else "num_epochs"
    options = {name: value for name, value in given.items() if name not in ("callbacks", "logger")}
    kinds = [type(callback).__module__ for callback in given.get("callbacks", ())]
    check_trainer(options, vars(config) | {length: num_epochs}, folder, kinds)


def _owned(
    options: Mapping[str, Any], algo: Mapping[str, Any], online: bool
) -> dict[str, tuple[Any, str]]:
    """Arguments that options of the algorithm say -> their value, and that option."""
    says = {
        "max_epochs": "num_iterations" if online else "num_epochs",
        "gradient_clip_val": "max_grad_norm",
        "accumulate_grad_batches": "gradient_accumulation_steps",
    }
    owned = {name: (algo[option], f"algo.{option}") for name, option in says.items()}
    if options.get("max_epochs") == -1 and (options.get("max_steps") or -1) > 0:
        del owned["max_epochs"]  # Lightning's way to count in optimizer steps alone
    every = "algo.eval_every"
    batches = algo["eval_every"] * algo["gradient_accumulation_steps"]
    owned["check_val_every_n_epoch"] = (algo["eval_every"] if online else None, every)
    owned["val_check_interval"] = (None if online else batches, every)
    if algo.get("device") is not None:
        said = device_options(algo["device"])
        if not isinstance(said["devices"], list):  # without an index it is a kind, of any number
            del said["devices"]
        owned |= {k: (v, "algo.device") for k, v in said.items()}
    return owned


def _check_ends(
    options: Mapping[str, Any], algo: Mapping[str, Any], callbacks: Iterable[str], online: bool
) -> None:
    for name in ("min_epochs", "min_steps"):
        if options.get(name) is not None and all(c.startswith(OURS) for c in callbacks):
            raise ValueError(
                f"trainer.{name}={options[name]!r} has no effect: no callback stops the run early"
            )
    for name in ("max_steps", "limit_train_batches", "limit_val_batches"):
        value = options.get(name)
        if isinstance(value, (int, float)) and value < (-1 if name == "max_steps" else 0):
            raise ValueError(f"trainer.{name}={value!r} must be 0 or more")
    schedule = algo.get("lr_scheduler_type", "constant")
    if options.get("max_time") is not None and schedule != "constant":
        raise ValueError(
            f"trainer.max_time={options['max_time']!r} ends at a step that algo.lr_scheduler_type="
            f"{schedule} would have to know beforehand: set algo.lr_scheduler_type=constant, or"
            " trainer.max_steps instead"
        )


def _check_hardware(options: Mapping[str, Any], algo: Mapping[str, Any]) -> None:
    strategy, accelerator = options.get("strategy", "auto"), options.get("accelerator", "auto")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(
            f"trainer.strategy={strategy!r} is not known to work: use auto, which takes"
            f" {MANY_PROCESSES} for several processes, or trainer=fsdp, which shares the model out"
            " (in Python: strategy=rlmodules.strategies.Sharded())"
        )
    if isinstance(strategy, Mapping) and strategy.get("_target_") not in OF_OURS:
        raise ValueError(
            f"trainer.strategy._target_={strategy.get('_target_')!r} is not known to work: use"
            " trainer=ddp or trainer=fsdp"
        )
    _check_sharded(strategy, options, algo)
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    if str(options.get("precision")) in ("16", "16-mixed") and on_cpu:
        raise ValueError(
            f"trainer.precision={options['precision']!r} needs a GPU: use bf16-mixed or 32-true"
        )


def _check_sharded(strategy: Any, options: Mapping[str, Any], algo: Mapping[str, Any]) -> None:
    """What a model that is shared out cannot have."""
    if not is_sharded(strategy):
        return
    precision, accelerator = str(options.get("precision")), options.get("accelerator", "auto")
    if precision not in ("None", "auto", "32-true", "32", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision={precision!r} is not known to work with trainer=fsdp: use"
            " bf16-mixed or 32-true"
        )
    if accelerator == "mps":
        raise ValueError(
            "trainer.accelerator='mps' is one device, of which trainer=fsdp shares nothing out: use"
            " trainer=default"
        )


def check_shared_out(settings: Mapping[str, Any]) -> None:
    """
    Args:
        settings: of the whole run.

    Raises:
        ValueError: a model that is shared out cannot be what another option says.
    """
    if not is_sharded(settings["trainer"].get("strategy")):
        return
    quantization = settings["model"].get("quantization") or "none"
    optimizer = (settings["algo"].get("optimizer") or {}).get("name", "adamw")
    refused = {
        f"model.quantization={quantization}": (quantization != "none", "trainer=ddp"),
        f"optimizer={optimizer}": (optimizer != "adamw", "optimizer=adamw, or trainer=ddp"),
        "sampler=vllm": (bool(settings.get("sampler")), "sampler=own, or trainer=ddp"),
        "model.compile=true": (settings["model"].get("compile", False), "model.compile=false"),
    }
    for option, (is_told, instead) in refused.items():
        if is_told:
            raise ValueError(f"{option} does not work with trainer=fsdp: use {instead}")


def is_sharded(strategy: Any) -> bool:
    """Whether a Trainer's ``strategy``, as an object or as its settings, shares the model out."""
    if isinstance(strategy, Mapping):
        return strategy.get("_target_") == SHARDED
    kind = type(strategy)
    return f"{kind.__module__}.{kind.__qualname__}" == SHARDED


def several_processes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``strategy`` that works with several processes, if ``options`` ask for several and leave
    the strategy open; else nothing."""
    many = num_devices(options) > 1 or int(options.get("num_nodes", 1)) > 1
    return (
        {"strategy": MANY_PROCESSES} if many and options.get("strategy", "auto") == "auto" else {}
    )


def num_devices(options: Mapping[str, Any]) -> int:
    """How many devices, and so processes, a node is asked for."""
    devices, accelerator = options.get("devices", "auto"), options.get("accelerator", "auto")
    if not isinstance(devices, (str, int)):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len(list(filter(None, devices.split(","))))
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count() if accelerator in ("auto", "cuda", "gpu") else 1
    return int(devices)
