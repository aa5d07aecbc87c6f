"""Thin façades for scripts and notebooks: module + datamodule + ``L.Trainer`` in one object."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules import RolloutDataModule, TextGenerationEnv
from rlmodules.callbacks import AtomicCheckpointIO, IterationBar, RunReport, SaveOnStop
from rlmodules.models import ModelConfig, resolve_precision
from rlmodules.ppo import PPO, PPOConfig


def device_options(device: str | None) -> dict[str, Any]:
    """Lightning's ``accelerator`` and ``devices`` for cpu, cuda, cuda:INDEX, mps or None.

    Raises:
        ValueError: another string.
    """
    if device is None:
        return {"accelerator": "auto", "devices": "auto"}
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "gpu", "mps") or (index and not index.isdigit()):
        raise ValueError(f"algo.device={device!r}: use cpu, cuda, cuda:INDEX, mps or null for auto")
    accelerator = "gpu" if kind == "cuda" else kind
    return {"accelerator": accelerator, "devices": [int(index)] if index else 1}


class PPOTrainer:
    """PPO on a list of prompts with a reward function of one's own.

    Args:
        config: settings.
        tokenizer: default: the model's own.
        reward_fn: ``(prompts, responses, metadata=None) -> list[float]``; default: length.
        model: a causal language model to train instead of loading ``config.model_name``.
        model_config: how to load it (type, LoRA, attention).
        output_dir: checkpoints and metrics; default ``outputs/DATE/TIME``.
        trainer_options: passed on to ``lightning.Trainer``; ``callbacks`` come beside our own.
    """

    def __init__(
        self,
        config: PPOConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        reward_fn: Callable[..., Sequence[float]] | None = None,
        *,
        model: nn.Module | None = None,
        model_config: ModelConfig | None = None,
        output_dir: str | Path | None = None,
        **trainer_options: Any,
    ) -> None:
        self.config, self.reward_fn = config, reward_fn
        self.output_dir = Path(output_dir or datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
        self.trainer_options = trainer_options
        self.module = PPO(config, model_config, model=model, tokenizer=tokenizer)

    def train(
        self,
        prompts: Sequence[Any],
        num_iterations: int | None = None,
        eval_prompts: Sequence[Any] | None = None,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, list[float]]:
        """Train, and return every metric as the list of its values by iteration.

        Args:
            prompts: strings or chat messages; each iteration takes the next ``batch_size`` of them.
            num_iterations: default: ``config.num_iterations``.
            eval_prompts: held-out prompts for ``val/...``; none by default.
            ckpt_path: continue from this checkpoint.
        """
        c = self.config
        data = RolloutDataModule(
            partial(TextGenerationEnv, reward_fn=self.reward_fn, max_length=_room(self.module)),
            prompts=prompts,
            eval_prompts=eval_prompts,
            eval_size=len(eval_prompts) if eval_prompts else 0,
            batch_size=c.batch_size,
            mini_batch_size=c.mini_batch_size,
            epochs=c.ppo_epochs,
            gradient_accumulation_steps=c.gradient_accumulation_steps,
            seed=c.seed,
        )
        report = RunReport(self.output_dir)
        checkpoints = self.output_dir / "checkpoints"
        callbacks = [report, every(checkpoints, c), SaveOnStop(checkpoints)]
        if self.trainer_options.get("enable_progress_bar", True):
            callbacks.append(IterationBar())
        options = {
            "max_epochs": num_iterations or c.num_iterations,
            "gradient_clip_val": c.max_grad_norm,
            "accumulate_grad_batches": c.gradient_accumulation_steps,
            "check_val_every_n_epoch": c.eval_every,
            "precision": resolve_precision("auto"),
            "logger": CSVLogger(self.output_dir, name="", version=""),
            "plugins": [AtomicCheckpointIO()],
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "inference_mode": False,
            "enable_model_summary": False,
            **device_options(c.device),
            **self.trainer_options,
            "callbacks": [*callbacks, *self.trainer_options.get("callbacks", [])],
        }
        L.Trainer(**options).fit(self.module, data, ckpt_path=ckpt_path, weights_only=True)
        names = sorted({name for row in report.history for name in row})
        return {n: [row[n] for row in report.history if n in row] for n in names}

    def save_model(self, path: str | Path, merge: bool = False) -> None:
        """Write the trained model, tokenizer and value head in Hugging Face format."""
        self.module.export(Path(path), merge=merge)


def every(dirpath: Path, config: PPOConfig) -> ModelCheckpoint:
    """``last.ckpt``, written every ``save_every`` iterations."""
    return ModelCheckpoint(
        dirpath=dirpath,
        filename="last",
        every_n_epochs=config.save_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _room(module: PPO) -> int:
    """Most tokens the model has positions for."""
    config = module.policy.base_model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2**31
