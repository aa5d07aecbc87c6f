"""On-policy distillation (Agarwal et al. 2023, arXiv:2306.13649): a policy learns from a teacher.

The policy writes responses, and before each of their tokens its distribution over the whole
vocabulary is drawn to the teacher's: the gradient is exact where a reward would be a sample, no
reward is needed, and what the environment pays is a measure alone. As in the paper, no gradient
goes through what was drawn. ``lmbda`` below 1 is GKD's mix, in which the teacher writes the other
responses (``seq_kd`` in TRL).

The teacher stands where other algorithms have a reference, so that ``val/kl`` is the KL to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.experience import Experience, Minibatch
from datamodules.seeding import derive_seed
from datamodules.types import Evaluation, Response, Rollout, SamplingParams, Trajectory
from rlmodules.algorithms.config import OnlineConfig
from rlmodules.algorithms.evaluation import evaluate
from rlmodules.algorithms.online import OnlineModule
from rlmodules.algorithms.policy import policy_from_export
from rlmodules.checks import require, require_known
from rlmodules.models import ModelConfig, Teacher
from rlmodules.models.teacher import config_of_teacher, load_teacher
from rlmodules.quantization import QUANTIZATIONS
from rlmodules.sampling.decoding import sample

AUTHOR = 0x7EAC4E2
"""Part of the seed of who writes a response, which no other random stream has."""


@dataclass
class DistillationConfig(OnlineConfig):
    """Settings of distillation; the Python API and the schema of ``conf/algo/distill.yaml`` alike.

    TRL's ``DistillationConfig`` has the same names for what is new here; ``lmbda`` is GKD's.
    """

    learning_rate: float = 1e-6
    batch_size: int = 64
    mini_batch_size: int = 16
    gradient_accumulation_steps: int = 4
    max_new_tokens: int = 256
    eval_every: int = 10

    num_epochs: int = 1
    """Passes over each iteration's episodes."""
    teacher_model_name_or_path: str | None = None
    """The model to learn from, as ``model.name`` says it: of any size, with the policy's
    vocabulary; held in ``model.dtype``, of which ``auto`` is bfloat16 where it is native."""
    teacher_model_revision: str | None = None
    """Branch, tag or commit of the teacher's hub repository."""
    teacher_quantization: str = "none"
    """Hold the teacher in ``4bit`` or ``8bit``."""
    beta: float = 1.0
    """Which divergence: 0 is the forward KL(teacher || policy), 1 the reverse KL(policy ||
    teacher), and between them is the generalized Jensen-Shannon divergence."""
    lmbda: float = 1.0
    """Share of the responses that the policy writes; the teacher writes the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("num_epochs",), lambda x: x >= 1, "at least 1")
        require(self, ("beta", "lmbda"), lambda x: 0 <= x <= 1, "between 0 and 1")
        require_known(self, {"teacher_quantization": QUANTIZATIONS})
        for name, plain in (("sampler_is", "none"), ("sampler_is_cap", 3.0)):
            if getattr(self, name) != plain:
                raise ValueError(
                    f"algo.{name}={getattr(self, name)} is of weights of advantages, and"
                    f" distillation has none: set it to {plain}"
                )

    def teacher(self, policy: ModelConfig) -> ModelConfig:
        """How the teacher is loaded, where ``policy`` is how the policy is.

        Raises:
            ValueError: there is none.
        """
        return config_of_teacher(
            policy,
            name=self.teacher_model_name_or_path,
            revision=self.teacher_model_revision,
            quantization=self.teacher_quantization,
        )


class Distillation(OnlineModule):
    """Distillation of a teacher into any causal language model.

    Args:
        config, model_config, given: as of ``OnlineModule``.
        teacher: used instead of loading ``config.teacher_model_name_or_path``.

    Raises:
        ValueError: there is no teacher, two, or one with another vocabulary.
    """

    config_class = DistillationConfig
    shares_prompts = True
    config: DistillationConfig
    reference: Any

    def __init__(
        self,
        config: DistillationConfig | dict[str, Any],
        model_config: ModelConfig | dict[str, Any] | None = None,
        *,
        teacher: nn.Module | None = None,
        **given: Any,
    ) -> None:
        super().__init__(config, model_config, **given)
        self.reference = teacher if isinstance(teacher, Teacher) else self._teacher(teacher)
        self.sampler = self.write
        self._authors = torch.zeros(2)

    def _teacher(self, given: nn.Module | None) -> Teacher:
        policys = ModelConfig.of(self.hparams["model_config"], self.config.model_name, given=True)
        if given is None:
            given = load_teacher(self.config.teacher(policys), self.tokenizer)
        return Teacher(given, self.tokenizer, packs=policys.attn_implementation == "auto")

    @property
    def has_reference(self) -> bool:
        """The teacher holds its place."""
        return False

    @property
    def recompute(self) -> bool:
        """Held out, and where another engine's tokens are to be compared: the loss needs none."""
        return not self._learning or self.elsewhere is not None

    @property
    def _learning(self) -> bool:
        """Whether episodes are played to be learned from."""
        return self._trainer is not None and self.trainer.training

    def sample_elsewhere(self, make: Any) -> None:
        if self.config.lmbda < 1:
            raise ValueError(
                f"algo.lmbda={self.config.lmbda} has the teacher write responses, and"
                " sampler=vllm holds the policy alone: set algo.lmbda=1.0 or sampler=own"
            )
        super().sample_elsewhere(make)

    def write(
        self, prompts: Sequence[Tensor], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Response]:
        """A response to each prompt, by policy or teacher, as its seed says; held out the policy
        writes all."""
        share = self.config.lmbda if self._learning else 1.0
        drawn = [derive_seed(seed, AUTHOR) / 2**63 for seed in seeds]
        by_policy = [i for i, x in enumerate(drawn) if x < share]
        by_teacher = [i for i, x in enumerate(drawn) if x >= share]
        if self._learning:
            self._authors += torch.tensor([len(by_policy), len(drawn)])
        responses: dict[int, Response] = {}
        with self.reference.of(self.policy) as teacher:
            for rows, author in ((by_policy, self.policy), (by_teacher, teacher)):
                some = [prompts[i] for i in rows], params, [seeds[i] for i in rows]
                written = sample(author, self.tokenizer, *some) if rows else []
                responses |= zip(rows, written, strict=True)
        return [responses[i] for i in range(len(prompts))]

    def evaluate(self, trajectories: Sequence[Trajectory]) -> Evaluation:
        """Log-probabilities under policy and teacher; of episodes to learn from as they were
        sampled, for the loss looks at both sides itself."""
        with self.inference():
            return evaluate(
                self.policy,
                None if self._learning else self.reference,
                trajectories,
                temperature=self.sampling.temperature,
                recompute=self.recompute,
            )

    def learn_from(self, rollout: Rollout) -> tuple[Experience, dict[str, float]]:
        """The episodes as they are: whatever they earned, the teacher says what is right."""
        evaluation = rollout.evaluation
        experience = Experience(
            sequences=evaluation.sequences,
            positions=evaluation.positions,
            mask=evaluation.mask,
            old_logprobs=evaluation.logprobs,
            advantages=torch.zeros_like(evaluation.logprobs),
        )
        by_policy, responses = self.sum_over_ranks(self._authors).tolist()
        self._authors = torch.zeros(2)
        share = by_policy / responses if responses else 1.0  # another engine wrote them
        return experience, {"rollout/on_policy": share}

    def training_step(self, batch: Minibatch, batch_idx: int) -> Tensor:
        """The loss of one minibatch: its mean divergence a token."""
        c, tokens = self.config, batch.tokens
        with self.reference.of(self.policy) as teacher:
            aims = teacher.predictions(tokens)
        found, entropy = self.policy.divergence(
            tokens, aims, beta=c.beta, temperature=c.temperature
        )
        loss = found.sum() / batch.num_actions
        actions = len(found)
        self.train_metrics.add_minibatch(
            {"train/loss": loss.detach(), "train/entropy": entropy.sum() / max(actions, 1)},
            divisor=batch.num_actions,
            actions=actions,
        )
        return loss

    def end_epoch(self) -> None:
        """Log what the iteration was like."""
        self.log_iteration(self.config.num_epochs)

    def from_export(self, dirpath: Path) -> "Distillation":
        return policy_from_export(self, dirpath, teacher=self.reference)
