"""Façades of algorithms that learn from a fixed set of texts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules import (
    DemonstrationDataModule,
    PreferenceDataModule,
    PreferenceDataset,
    UnpairedPreferenceDataModule,
)
from datamodules.examples.datamodule import ExampleDataModule
from datamodules.examples.dataset import ExampleDataset
from rlmodules.algorithms.config import OfflineConfig
from rlmodules.algorithms.dpo import DPO
from rlmodules.algorithms.kto import KTO
from rlmodules.algorithms.offline import OfflineModule
from rlmodules.algorithms.orpo import ORPO
from rlmodules.algorithms.sft import SFT
from rlmodules.callbacks import DemonstrationReport
from rlmodules.checks import device_options
from rlmodules.facade import Facade, Metrics
from rlmodules.models import ModelConfig
from rlmodules.optimizers.config import require_optimizer
from rlmodules.reward_models.config import RewardModelConfig
from rlmodules.reward_models.scalar import RewardModel


def _examples(train: ExampleDataset[Any], held_out: ExampleDataset[Any] | None, size: int) -> dict:
    """Options of an ``ExampleDataModule``."""
    options = {"train_dataset": train, "eval_dataset": held_out}
    return options | {"eval_size": len(held_out or ()), "batch_size": size}


class TextTrainer(Facade):
    """A language model on a data set that was tokenized; arguments as of ``OnlineTrainer``."""

    module_class: ClassVar[type[OfflineModule]]
    data_class: ClassVar[type[ExampleDataModule]]

    def __init__(
        self,
        config: OfflineConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        model: nn.Module | None = None,
        model_config: ModelConfig | None = None,
        output_dir: str | Path | None = None,
        **trainer_options: Any,
    ) -> None:
        require_optimizer(config.optimizer.name, config.device)
        module = self.module_class(config, model_config, model=model, tokenizer=tokenizer)
        super().__init__(module, output_dir, trainer_options)

    def train(
        self,
        dataset: ExampleDataset[Any],
        eval_dataset: ExampleDataset[Any] | None = None,
        ckpt_path: str | Path | None = None,
        resume_allow: Sequence[str] = (),
    ) -> Metrics:
        """Train, and return every metric as the list of its values by optimizer step.

        Args:
            eval_dataset: held-out examples for ``val/...``; none by default.
            ckpt_path: continue from this checkpoint.
            resume_allow: options that may change there although the result is then of neither run.
        """
        c = self.config
        data = _examples(dataset, eval_dataset, c.batch_size)
        return self.fit(self.data_class, c.num_epochs, ckpt_path, resume_allow, **data)

    def save_model(self, path: str | Path, merge: bool | None = None) -> None:
        """Write the trained model and its tokenizer in Hugging Face format."""
        self.export(path, merge)


class DPOTrainer(TextTrainer):
    """DPO on a ``PreferenceDataset``; ``config`` is a ``DPOConfig``."""

    module_class, data_class = DPO, PreferenceDataModule


class ORPOTrainer(TextTrainer):
    """ORPO on a ``PreferenceDataset``; ``config`` is an ``ORPOConfig``."""

    module_class, data_class = ORPO, PreferenceDataModule


class KTOTrainer(TextTrainer):
    """KTO on an ``UnpairedPreferenceDataset``; ``config`` is a ``KTOConfig``."""

    module_class, data_class = KTO, UnpairedPreferenceDataModule


class SFTTrainer(TextTrainer):
    """SFT on a ``DemonstrationDataset``; ``config`` is an ``SFTConfig``."""

    module_class, data_class = SFT, DemonstrationDataModule
    report_class = DemonstrationReport


class RewardModelTrainer(Facade):
    """Trains a reward model on texts.

    Args:
        model: ``RewardModel`` or ``PairwiseRewardModel``.
        tokenizer: default: the model's own.
        config: default: the model's own.
        device: default: the config's, else what there is.
        output_dir, trainer_options: as of ``OnlineTrainer``.
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
        self.model = model
        model.config, model.tokenizer = config or model.config, tokenizer or model.tokenizer
        if model.tokenizer is None:
            raise ValueError("the reward model has no tokenizer: give one")
        if device is not None:
            trainer_options |= device_options(str(device))
        super().__init__(model, output_dir, trainer_options)

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
        resume_allow: Sequence[str] = (),
    ) -> Metrics:
        """Train on whole texts, prompt included; returns every metric by optimizer step.

        Args:
            eval_chosen_texts, eval_rejected_texts: held-out texts for ``val/...``.
            margins: by how much the chosen text is better; default 0.
            ckpt_path: continue from this checkpoint.
            resume_allow: options that may change there although the result is then of neither run.
        """
        c, model, held_out = self.config, self.model, None
        limits = {"max_length": c.max_length, "max_prompt_length": c.max_prompt_length}
        pairs = partial(
            PreferenceDataset, tokenizer=model.tokenizer, close=model.closes_texts, **limits
        )
        train = pairs([""] * len(chosen_texts), chosen_texts, rejected_texts, margins=margins)
        if eval_chosen_texts is not None:
            prompts = [""] * len(eval_chosen_texts)
            held_out = pairs(prompts, eval_chosen_texts, eval_rejected_texts)
        data = _examples(train, held_out, batch_size)
        return self.fit(PreferenceDataModule, num_epochs, ckpt_path, resume_allow, **data)

    def save_model(self, path: str | Path) -> None:
        """All that was trained in one safetensors file; see ``RewardModel.save_model``."""
        self.model.save_model(path)

    def load_model(self, path: str | Path) -> None:
        """Take the weights of such a file; a pickle is refused."""
        self.model.load_model(path)
