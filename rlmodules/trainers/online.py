"""Façades of algorithms that learn from their own episodes."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules import Environment, RolloutDataModule
from datamodules.environments.text import TextGenerationEnv
from rlmodules.algorithms.config import OnlineConfig
from rlmodules.algorithms.distillation import Distillation, DistillationConfig
from rlmodules.algorithms.grpo import GRPO
from rlmodules.algorithms.online import OnlineModule
from rlmodules.algorithms.ppo import PPO
from rlmodules.facade import Facade, Metrics
from rlmodules.models import ModelConfig
from rlmodules.optimizers.config import require_optimizer
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


class DistillationTrainer(OnlineTrainer):
    """Distillation of a teacher; ``reward_fn`` and ``env`` are measures alone.

    Args:
        config: settings.
        teacher_model: used instead of loading ``config.teacher_model_name_or_path``.
        tokenizer, reward_fn, options: as of ``OnlineTrainer``.
    """

    module_class, epochs = Distillation, "num_epochs"

    def __init__(
        self,
        config: DistillationConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        reward_fn: Any = None,
        *,
        teacher_model: nn.Module | None = None,
        **options: Any,
    ) -> None:
        self.module_class = partial(Distillation, teacher=teacher_model)
        super().__init__(config, tokenizer, reward_fn, **options)
