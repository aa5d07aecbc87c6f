"""``task=collect_preferences``: the policy of a run answers prompts, instead of being trained."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L

from datamodules import RolloutDataModule
from datamodules.rollouts.collector import Collected, PreferenceCollector
from datamodules.rollouts.pairs_file import PairsFile
from datamodules.text.cache import digest
from rlmodules.algorithms.online import OnlineModule
from rlmodules.resuming import contents
from rlmodules.tasks.ready import make_ready

PROMPTS = ("prompts", "path", "prompt_column", "columns", "split", "name", "chat",
           "chat_template_kwargs")  # fmt: skip
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p")
HELD_OUT = ("eval_prompts", "eval_path", "eval_split", "eval_size")


def collect_preferences(
    make_module: Callable[[], OnlineModule],
    data: RolloutDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    *,
    out: str,
    **options: Any,
) -> Collected:
    """Pairs of answers to the training prompts of ``data``, in the file ``out``.

    Args:
        make_module: makes the policy, in any algorithm that samples; nothing of it is trained.
        trainer: says on which device and in which precision to compute.
        settings: of the run, as plain values: rows say in ``source`` what they were made by.
        out: where the pairs go: a .jsonl file, which is continued if it is of this very run.
        options: of ``PreferenceCollector``, whose seed is that of ``data``.

    Raises:
        ValueError: the algorithm has no environment to sample in, or there are several processes.
    """
    module = make_module()
    if not isinstance(module, OnlineModule):
        raise ValueError(
            f"task=collect_preferences samples from a policy, and {type(module).__name__} learns"
            " from pairs that exist: use algo=ppo or algo=grpo; nothing is trained"
        )
    if trainer.world_size > 1:
        raise ValueError(
            f"task=collect_preferences runs in one process, not {trainer.world_size}: set"
            " trainer.devices=1"
        )
    collector = PreferenceCollector(seed=data.seed, **options)
    file = PairsFile(out, source_of(settings, module) | collector.source)
    make_ready(module, data, trainer)
    return collector.collect(module, data.env, file, data.train_starts)


def source_of(settings: Mapping[str, Any], module: OnlineModule) -> dict[str, Any]:
    """What made a run's pairs: names to read, and a digest that their other settings change."""
    env, model, data = (settings[group] for group in ("env", "model", "data"))
    parts = {name: data[name] for name in (*PROMPTS, *HELD_OUT)}
    named = {"model": model["name"], "env": env["_target_"]}
    if settings.get("ckpt_path"):
        named["digest_of_checkpoint"] = contents.digest(Path(settings["ckpt_path"]))
    sampling = {name: getattr(module.sampling, name) for name in SAMPLING}
    return named | {"digest_of_env_model_data": digest(env, model, parts)} | sampling
