"""Façades of preference learning for scripts and notebooks; PPO's is in ``rlmodules.trainers``."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules import PreferenceDataModule, PreferenceDataset
from datamodules.preferences.dataset import ExampleDataset
from rlmodules.algorithms.dpo import DPO, DPOConfig
from rlmodules.algorithms.offline import OfflineModule
from rlmodules.algorithms.orpo import ORPO, ORPOConfig
from rlmodules.callbacks import AtomicCheckpointIO, PreferenceReport, SaveOnStop, StepBar
from rlmodules.checks import device_options
from rlmodules.models import ModelConfig, resolve_precision
from rlmodules.reward_models.config import RewardModelConfig
from rlmodules.reward_models.scalar import RewardModel

Metrics = dict[str, list[float]]


def fit(
    module: OfflineModule,
    dataset: ExampleDataset,
    eval_dataset: ExampleDataset | None,
    output_dir: Path,
    *,
    num_epochs: int,
    batch_size: int,
    ckpt_path: str | Path | None = None,
    **trainer_options: Any,
) -> Metrics:
    """Train ``module``; returns every metric as the list of its values by optimizer step.

    Held-out metrics (``val/...``) are lists by evaluation.
    """
    c = module.config
    data = PreferenceDataModule(
        train_dataset=dataset,
        eval_dataset=eval_dataset,
        batch_size=batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        seed=c.seed,
    )
    report, checkpoints = PreferenceReport(output_dir), output_dir / "checkpoints"
    last = ModelCheckpoint(
        dirpath=checkpoints,
        filename="last",
        every_n_train_steps=c.save_every,
        enable_version_counter=False,
    )
    callbacks = [report, last, SaveOnStop(checkpoints)]
    if trainer_options.get("enable_progress_bar", True):
        callbacks.append(StepBar())
    options = {
        "max_epochs": num_epochs,
        "gradient_clip_val": c.max_grad_norm,
        "accumulate_grad_batches": c.gradient_accumulation_steps,
        "check_val_every_n_epoch": None,
        "val_check_interval": c.eval_every * c.gradient_accumulation_steps,
        "precision": resolve_precision("auto"),
        "logger": CSVLogger(output_dir, name="", version=""),
        "plugins": [AtomicCheckpointIO()],
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "use_distributed_sampler": False,
        "inference_mode": False,
        "enable_model_summary": False,
        **device_options(c.device),
        **trainer_options,
        "callbacks": [*callbacks, *trainer_options.get("callbacks", [])],
    }
    L.Trainer(**options).fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    rows = [*report.history, *report.evaluations]
    names = sorted({name for row in rows for name in row} - {"step"})
    return {name: [row[name] for row in rows if name in row] for name in names}


def new_folder(output_dir: str | Path | None) -> Path:
    """``output_dir``, or one named by the time."""
    return Path(output_dir or datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))


class DPOTrainer:
    """DPO on a ``PreferenceDataset``.

    Args:
        config: settings.
        tokenizer: default: the model's own.
        model: a causal language model to train instead of loading ``config.model_name``.
        model_config: how to load it (type, LoRA, attention).
        output_dir: checkpoints, metrics and report; default ``outputs/DATE/TIME``.
        trainer_options: passed on to ``lightning.Trainer``; ``callbacks`` come beside our own.
    """

    module_class: type[OfflineModule] = DPO

    def __init__(
        self,
        config: DPOConfig | ORPOConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        model: nn.Module | None = None,
        model_config: ModelConfig | None = None,
        output_dir: str | Path | None = None,
        **trainer_options: Any,
    ) -> None:
        self.config, self.output_dir = config, new_folder(output_dir)
        self.trainer_options = trainer_options
        self.module = self.module_class(config, model_config, model=model, tokenizer=tokenizer)

    def train(
        self,
        dataset: PreferenceDataset,
        eval_dataset: PreferenceDataset | None = None,
        ckpt_path: str | Path | None = None,
    ) -> Metrics:
        """Train; see ``fit`` for what is returned.

        Args:
            eval_dataset: held-out pairs for ``val/...``; none by default.
            ckpt_path: continue from this checkpoint.
        """
        return fit(
            self.module,
            dataset,
            eval_dataset,
            self.output_dir,
            num_epochs=self.config.num_epochs,
            batch_size=self.config.batch_size,
            ckpt_path=ckpt_path,
            **self.trainer_options,
        )

    def save_model(self, path: str | Path, merge: bool = False) -> None:
        """Write the trained model and its tokenizer in Hugging Face format."""
        self.module.export(Path(path), merge=merge)


class ORPOTrainer(DPOTrainer):
    """ORPO on a ``PreferenceDataset``; arguments as of ``DPOTrainer``."""

    module_class = ORPO


class RewardModelTrainer:
    """Trains a reward model on texts.

    Args:
        model: ``RewardModel`` or ``PairwiseRewardModel``.
        tokenizer: default: the model's own.
        config: default: the model's own.
        device: default: the config's, else what there is.
        output_dir, trainer_options: as of ``DPOTrainer``.
    """

    def __init__(
        self,
        model: RewardModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        config: RewardModelConfig | None = None,
        device: Any = None,
        *,
        output_dir: str | Path | None = None,
        **trainer_options: Any,
    ) -> None:
        if config is not None:
            model.config = config
        self.model, self.config = model, model.config
        self.model.tokenizer = tokenizer or model.tokenizer
        if self.model.tokenizer is None:
            raise ValueError("the reward model has no tokenizer: give one")
        if device is not None:
            trainer_options |= device_options(str(device))
        self.output_dir, self.trainer_options = new_folder(output_dir), trainer_options

    def train_on_preferences(
        self,
        chosen_texts: Sequence[str],
        rejected_texts: Sequence[str],
        num_epochs: int = 3,
        batch_size: int = 8,
        eval_chosen_texts: Sequence[str] | None = None,
        eval_rejected_texts: Sequence[str] | None = None,
        margins: Sequence[float | None] | None = None,
        ckpt_path: str | Path | None = None,
    ) -> Metrics:
        """Train on whole texts, prompt included; see ``fit`` for what is returned.

        Args:
            eval_chosen_texts, eval_rejected_texts: held-out texts for ``val/...``.
            margins: by how much the chosen text is better; default 0.
            ckpt_path: continue from this checkpoint.
        """
        eval_dataset = None
        if eval_chosen_texts is not None:
            eval_dataset = self._dataset(eval_chosen_texts, eval_rejected_texts)
        return fit(
            self.model,
            self._dataset(chosen_texts, rejected_texts, margins),
            eval_dataset,
            self.output_dir,
            num_epochs=num_epochs,
            batch_size=batch_size,
            ckpt_path=ckpt_path,
            **self.trainer_options,
        )

    def _dataset(
        self,
        chosen: Sequence[str],
        rejected: Sequence[str],
        margins: Sequence[float | None] | None = None,
    ) -> PreferenceDataset:
        c = self.config
        return PreferenceDataset(
            [""] * len(chosen),
            chosen,
            rejected,
            self.model.tokenizer,
            c.max_length,
            c.max_prompt_length,
            margins=margins,
            close=self.model.closes_texts,
        )

    def save_model(self, path: str | Path) -> None:
        """All that was trained in one safetensors file; see ``RewardModel.save_model``."""
        self.model.save_model(path)

    def load_model(self, path: str | Path) -> None:
        """Take the weights of such a file; a pickle is refused."""
        self.model.load_model(path)
