"""Thin façades for scripts and notebooks: module + datamodule + ``L.Trainer`` in one object."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules import Environment, RolloutDataModule, TextGenerationEnv
from rlmodules.algorithms.grpo import GRPO
from rlmodules.algorithms.online import OnlineModule
from rlmodules.algorithms.ppo import PPO
from rlmodules.callbacks import AtomicCheckpointIO, IterationBar, RunReport, SaveOnStop
from rlmodules.checks import device_options
from rlmodules.models import ModelConfig, resolve_precision


class OnlineTrainer:
    """An online algorithm on a list of prompts, or in an environment.

    Args:
        config: settings.
        tokenizer: default: the model's own.
        reward_fn: ``(prompts, responses, metadata=None) -> list[float]``; default: length.
        env: plays and scores instead of ``reward_fn``; it has prompts of its own.
        model: a causal language model to train instead of loading ``config.model_name``.
        model_config: how to load it (type, LoRA, attention).
        output_dir: checkpoints and metrics; default ``outputs/DATE/TIME``.
        trainer_options: passed on to ``lightning.Trainer``; ``callbacks`` come beside our own.

    Raises:
        ValueError: both ``reward_fn`` and ``env`` are given.
    """

    module_class: ClassVar[type[OnlineModule]]

    def __init__(
        self,
        config: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        reward_fn: Callable[..., Sequence[float]] | None = None,
        *,
        env: Environment | None = None,
        model: nn.Module | None = None,
        model_config: ModelConfig | None = None,
        output_dir: str | Path | None = None,
        **trainer_options: Any,
    ) -> None:
        if env is not None and reward_fn is not None:
            raise ValueError("give either env, which scores itself, or reward_fn, not both")
        self.config, self.reward_fn, self.env = config, reward_fn, env
        self.output_dir = Path(output_dir or datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
        self.trainer_options = trainer_options
        self.module = self.module_class(config, model_config, model=model, tokenizer=tokenizer)

    def sizes(self) -> dict[str, int]:
        """How the algorithm divides an iteration's episodes: arguments of the data module."""
        raise NotImplementedError

    def train(
        self,
        prompts: Sequence[Any] | None = None,
        num_iterations: int | None = None,
        eval_prompts: Sequence[Any] | None = None,
        ckpt_path: str | Path | None = None,
    ) -> dict[str, list[float]]:
        """Train, and return every metric as the list of its values by iteration.

        Args:
            prompts: strings or chat messages; each iteration takes the next of them. None where
                the environment has its own.
            num_iterations: default: ``config.num_iterations``.
            eval_prompts: held-out prompts for ``val/...``; none by default.
            ckpt_path: continue from this checkpoint.

        Raises:
            ValueError: neither or both of ``prompts`` and an environment are given.
        """
        if (prompts is None) == (self.env is None):
            raise ValueError("give prompts to train(), or env to the trainer, not both")
        c = self.config
        text = partial(TextGenerationEnv, reward_fn=self.reward_fn, max_length=_room(self.module))
        held_out = len(eval_prompts or (self.env.held_out if self.env else None) or ())
        data = RolloutDataModule(
            self.env or text,
            prompts=prompts,
            eval_prompts=eval_prompts,
            eval_size=held_out,
            batch_size=c.batch_size,
            mini_batch_size=c.mini_batch_size,
            gradient_accumulation_steps=c.gradient_accumulation_steps,
            seed=c.seed,
            **self.sizes(),
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
        """Write the trained model and tokenizer (PPO: and value head) in Hugging Face format."""
        self.module.export(Path(path), merge=merge)


class PPOTrainer(OnlineTrainer):
    """PPO; ``config`` is a ``PPOConfig``."""

    module_class = PPO

    def sizes(self) -> dict[str, int]:
        return {"epochs": self.config.ppo_epochs}


class GRPOTrainer(OnlineTrainer):
    """GRPO; ``config`` is a ``GRPOConfig``."""

    module_class = GRPO

    def sizes(self) -> dict[str, int]:
        c = self.config
        return {
            "epochs": c.num_epochs,
            "num_generations": c.num_generations,
            "max_resamples": c.max_resamples,
        }


def every(dirpath: Path, config: Any) -> ModelCheckpoint:
    """``last.ckpt``, written every ``save_every`` iterations."""
    return ModelCheckpoint(
        dirpath=dirpath,
        filename="last",
        every_n_epochs=config.save_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _room(module: OnlineModule) -> int:
    """Most tokens the model has positions for."""
    config = module.base_model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or 2**31
