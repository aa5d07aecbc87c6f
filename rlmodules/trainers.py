"""Façades for scripts and notebooks: module, data module and ``L.Trainer`` in one object."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules import (
    DemonstrationDataModule,
    Environment,
    PreferenceDataModule,
    PreferenceDataset,
    RolloutDataModule,
    UnpairedPreferenceDataModule,
)
from datamodules.environments.text import TextGenerationEnv
from datamodules.examples.datamodule import ExampleDataModule
from datamodules.examples.dataset import ExampleDataset
from rlmodules.algorithms.config import OfflineConfig, OnlineConfig
from rlmodules.algorithms.dpo import DPO
from rlmodules.algorithms.grpo import GRPO
from rlmodules.algorithms.kto import KTO
from rlmodules.algorithms.offline import OfflineModule
from rlmodules.algorithms.online import OnlineModule
from rlmodules.algorithms.orpo import ORPO
from rlmodules.algorithms.ppo import PPO
from rlmodules.algorithms.sft import SFT
from rlmodules.callbacks import DemonstrationReport
from rlmodules.checks import device_options
from rlmodules.facade import Facade, Metrics
from rlmodules.models import ModelConfig
from rlmodules.optimizers.config import require_optimizer
from rlmodules.reward_models.config import RewardModelConfig
from rlmodules.reward_models.scalar import RewardModel
from rlmodules.reward_models.weighted import rewards_of


class OnlineTrainer(Facade):
    """An online algorithm on a list of prompts, or in an environment.

    Args:
        config: settings.
        tokenizer: default: the model's own.
        reward_fn: ``(prompts, responses, metadata=None) -> list[float]``, or as
            ``TextGenerationEnv`` takes them: TRL's, several in a list or a dict; or by name, as
            ``reward=`` does (``"length"``, ``"my_module:my_fn"``); default: length.
        reward_weights: of several, in a list or by name; default: 1 each.
        env: plays and scores instead of ``reward_fn``; it has prompts of its own.
        model: a causal language model to train instead of loading ``config.model_name``.
        model_config: how to load it (type, LoRA, attention).
        output_dir: checkpoints, metrics and report; default ``outputs/DATE/TIME``.
        trainer_options: passed on to ``lightning.Trainer``; ``callbacks`` come beside our own.

    Raises:
        ValueError: both ``reward_fn`` and ``env`` are given.
    """

    module_class: ClassVar[type[OnlineModule]]
    epochs: ClassVar[str]
    """Field of ``config`` that says how often an iteration's episodes are gone over."""
    sizes: ClassVar = ("batch_size", "mini_batch_size")
    """Fields of ``config`` that are options of the data module too."""

    def __init__(
        self,
        config: OnlineConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        reward_fn: Any = None,
        *,
        reward_weights: Sequence[float] | Mapping[str, float] | None = None,
        env: Environment | None = None,
        model: nn.Module | None = None,
        model_config: ModelConfig | None = None,
        output_dir: str | Path | None = None,
        **trainer_options: Any,
    ) -> None:
        if env is not None and reward_fn is not None:
            raise ValueError("give either env, which scores itself, or reward_fn, not both")
        if reward_weights is not None and reward_fn is None:
            raise ValueError(f"reward_weights={reward_weights!r} go with several in reward_fn")
        self.reward_fn = None if reward_fn is None else rewards_of(reward_fn, reward_weights)
        self.env = env
        require_optimizer(config.optimizer.name, config.device)
        module = self.module_class(config, model_config, model=model, tokenizer=tokenizer)
        super().__init__(module, output_dir, trainer_options)

    def train(
        self,
        prompts: Sequence[Any] | None = None,
        num_iterations: int | None = None,
        eval_prompts: Sequence[Any] | None = None,
        ckpt_path: str | Path | None = None,
        resume_allow: Sequence[str] = (),
    ) -> Metrics:
        """Train, and return every metric as the list of its values by iteration.

        Args:
            prompts: strings or chat messages; each iteration takes the next of them. None where
                the environment has its own.
            num_iterations: default: ``config.num_iterations``.
            eval_prompts: held-out prompts for ``val/...``; none by default.
            ckpt_path: continue from this checkpoint.
            resume_allow: options that may change there although the result is then of neither run.

        Raises:
            ValueError: neither or both of ``prompts`` and an environment are given.
        """
        if (prompts is None) == (self.env is None):
            raise ValueError("give prompts to train(), or env to the trainer, not both")
        c, env = self.config, self.env
        room = self.module.policy.positions.count or 2**31
        return self.fit(
            RolloutDataModule,
            num_iterations or c.num_iterations,
            ckpt_path,
            resume_allow,
            env=env or partial(TextGenerationEnv, reward_fn=self.reward_fn, max_length=room),
            prompts=prompts,
            eval_prompts=eval_prompts,
            eval_size=len(eval_prompts or (env.held_out if env else None) or ()),
            epochs=getattr(c, self.epochs),
            **{name: getattr(c, name) for name in self.sizes},
        )

    def save_model(self, path: str | Path, merge: bool | None = None) -> None:
        """Write the trained model and tokenizer (PPO: and value head) in Hugging Face format."""
        self.export(path, merge)


class PPOTrainer(OnlineTrainer):
    """PPO; ``config`` is a ``PPOConfig``."""

    module_class, epochs = PPO, "ppo_epochs"


class GRPOTrainer(OnlineTrainer):
    """GRPO; ``config`` is a ``GRPOConfig``."""

    module_class, epochs = GRPO, "num_epochs"
    sizes = (*OnlineTrainer.sizes, "num_generations", "max_resamples")


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
