"""What of a run's settings decides how much memory it takes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rlmodules.algorithms.distillation import Distillation
from rlmodules.algorithms.dpo import DPO
from rlmodules.algorithms.kto import KTO
from rlmodules.algorithms.online import OnlineModule
from rlmodules.algorithms.orpo import ORPO
from rlmodules.algorithms.ppo import PPO
from rlmodules.algorithms.sft import SFT
from rlmodules.memory.live import HALF
from rlmodules.memory.paper import Paper, give_sizes, on_paper
from rlmodules.memory.parts import Parts
from rlmodules.memory.texts import Group
from rlmodules.models import ModelConfig, PPOModel, ValueHead, resolve_precision
from rlmodules.models.config import DTYPES
from rlmodules.models.loading import has_native_bf16
from rlmodules.models.teacher import naming_teacher
from rlmodules.optimizers.muon import matrices
from rlmodules.optimizers.table import Held, state_bytes, step_bytes
from rlmodules.reward_models.config import with_lora
from rlmodules.reward_models.heads import Comparison, RewardHead
from rlmodules.reward_models.pairwise import PairwiseRewardModel
from rlmodules.reward_models.scalar import RewardModel
from rlmodules.trainer_options import is_sharded

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
"""Precisions -> the type that is computed in; or that all weights are turned into."""


UNCOUNTED = {"activation_offload": False, "compile": False}
"""Options of the model whose memory is not counted -> the value that asks for nothing."""


@dataclass(frozen=True)
class Run:
    """A run, as far as memory is concerned.

    Attributes:
        algorithm: the module's class.
        config: its settings.
        model: how the model is loaded.
        precision: of the Trainer, resolved.
        half: whether the device computes in bfloat16, as every card does that is not here.
        device: ``cpu`` or ``cuda``.
        world: processes, each with a device of its own.
    """

    algorithm: Any
    config: Any
    model: ModelConfig
    precision: str
    device: str
    world: int
    half: bool = True

    @classmethod
    def of(cls, algorithm: Any, settings: Mapping[str, Any], *, device: str, world: int) -> "Run":
        """The run of these settings, as plain values."""
        config = algorithm.config_class(**settings["algo"])
        model = ModelConfig.of(settings["model"], config.model_name, given=False)
        _refuse_uncounted(model, settings)
        if issubclass(algorithm, RewardModel):
            model = with_lora(model, config)
        half = has_native_bf16() or (device == "cuda" and not torch.cuda.is_available())
        precision = resolve_precision(str(settings["trainer"]["precision"]), half)
        return cls(algorithm, config, model, precision, device, world, half)

    @property
    def half_on_cpu(self) -> torch.dtype | None:
        """The type of half precision that a CPU is to compute in, if it is."""
        dtype = AUTOCAST.get(self.precision) or TRUE.get(self.precision)
        return dtype if self.device == "cpu" and dtype in HALF else None

    @property
    def is_online(self) -> bool:
        return issubclass(self.algorithm, OnlineModule)

    @property
    def scores_tokens(self) -> bool:
        """Whether tokens are scored; reward models read texts whole."""
        return not issubclass(self.algorithm, RewardModel)

    @property
    def has_teacher(self) -> bool:
        """Whether the reference is another model, and asked of held-out episodes alone."""
        return issubclass(self.algorithm, Distillation)

    @property
    def teacher(self) -> ModelConfig | None:
        """How the teacher is loaded.

        Raises:
            ValueError: there is to be one, and it has no name.
        """
        return self.config.teacher(self.model) if self.has_teacher else None

    @property
    def has_reference(self) -> bool:
        if self.has_teacher:
            return True
        if self.is_online:
            return bool(self._says("has_reference"))
        if issubclass(self.algorithm, KTO):
            return True
        return issubclass(self.algorithm, DPO) and not self.config.reference_free

    @property
    def recompute(self) -> bool:
        """Whether sampled tokens are scored again before they are learned from."""
        return self.has_teacher or bool(self._says("recompute"))

    @property
    def has_entropy(self) -> bool:
        return issubclass(self.algorithm, PPO)

    @property
    def trains_entropy(self) -> bool:
        return self.has_entropy and self.config.entropy_coef > 0

    @property
    def has_critic(self) -> bool:
        return self.is_online and issubclass(self.algorithm.policy_class, PPOModel)

    def written(self, rows: int) -> tuple[int, int]:
        """How many of ``rows`` responses of an iteration policy and teacher write, at most: drawn
        are as many or fewer in 39 of 40 iterations (two standard deviations)."""
        if not self.has_teacher:
            return rows, 0
        shares = (self.config.lmbda, 1 - self.config.lmbda)
        most = (rows * x + 2 * math.sqrt(rows * x * (1 - x)) for x in shares)
        policys, teachers = (min(math.ceil(count), rows) for count in most)
        return policys, teachers

    def compared(self, groups: Sequence[Group]) -> Sequence[Group]:
        """What the reference scores of a batch while the policy's activations are there."""
        if not self.has_reference or self.is_online or self.is_tabled:
            return ()
        if issubclass(self.algorithm, KTO) and self.config.loss_type == "kto":
            return [group.beside(groups[i - 1]) for i, group in enumerate(groups)]
        return groups

    @property
    def is_tabled(self) -> bool:
        """Whether the reference's log-probabilities are made beforehand."""
        return getattr(self.config, "precompute_ref_log_probs", False)

    @property
    def reads_prompts(self) -> bool:
        """Whether the loss reads (chosen) texts from their second token on."""
        if issubclass(self.algorithm, SFT):
            return self.config.completion_only_loss is False
        return issubclass(self.algorithm, ORPO)

    @property
    def packs(self) -> bool:
        """Whether rows are packed, where the model can; found out for sure once it is loaded."""
        wanted = not self.is_online or self.algorithm.shares_prompts
        return wanted and self.model.attn_implementation == "auto" and self._packing_pays

    @property
    def _packing_pays(self) -> bool:
        """Whether it does where the run computes; a card is taken for one with flash attention."""
        own = DTYPES.get(self.model.dtype)
        dtype = AUTOCAST.get(self.precision) or TRUE.get(self.precision) or own
        return self.device == "cpu" or dtype in HALF

    @property
    def batch_option(self) -> str:
        """What decides the size of a backward pass."""
        return "mini_batch_size" if self.is_online else "batch_size"

    def _says(self, name: str) -> Any:
        """A property of the module, which needs its settings, and none of its weights."""
        module = self.algorithm.__new__(self.algorithm)
        nn.Module.__init__(module)
        module.config, module.elsewhere = self.config, None
        return getattr(module, name)

    def parts(self) -> Parts:
        """The run's models on paper.

        Raises:
            ValueError: see ``on_paper``.
        """
        dtype = TRUE.get(self.precision)
        kinds = {"head": self.scores_tokens, "device": self.device, "packs": self.packs,
                 "half": self.half, "dtype": dtype}  # fmt: skip
        paper, teacher = on_paper(self.model, **kinds), None
        if (config := self.teacher) is not None:
            with naming_teacher(config.name):
                teacher = on_paper(config, trained=False, mode=paper.mode, **kinds)
        with torch.device("meta"):
            heads = self._heads(paper)
        if heads is not None:
            give_sizes(heads.to(dtype), paper.mode)
        made = Parts(
            paper=paper,
            reference=self._reference(paper, teacher),
            has_reference=self.has_reference,
            heads=heads,
            autocast=AUTOCAST.get(self.precision),
            device=self.device,
            optimizer_bytes=0,
            accumulates=self.config.gradient_accumulation_steps > 1,
            teacher=teacher,
        )
        return replace(made, optimizer_bytes=optimizer_bytes(made, self.config.optimizer.name))

    def _reference(self, paper: Paper, teacher: Paper | None) -> Any:
        if teacher is not None:
            return teacher.model
        return paper.reference() if self.has_reference and not paper.is_own_reference else None

    def _heads(self, paper: Paper) -> nn.Module | None:
        if self.has_critic:
            return ValueHead(paper.hidden_size)
        if self.scores_tokens:
            return None
        head = RewardHead(paper.hidden_size, self.config.num_labels, self.config.dropout_prob)
        if issubclass(self.algorithm, PairwiseRewardModel):
            return nn.ModuleDict({"head": head, "comparison": Comparison(paper.hidden_size)})
        return head


def _refuse_uncounted(model: ModelConfig, settings: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: an option changes what is in memory, and that is not counted here.
    """
    said = {f"model.{name}": getattr(model, name, plain) for name, plain in UNCOUNTED.items()}
    told = [f"{k}={v!r}" for k, v in said.items() if v != UNCOUNTED[k.removeprefix("model.")]]
    told += ["sampler=vllm"] if settings.get("sampler") else []
    told += ["trainer=fsdp"] if is_sharded(settings["trainer"].get("strategy")) else []
    if told:
        raise ValueError(
            f"{told[0]}: what it takes is not counted; leave it out to see what the run takes"
            " without it"
        )


def states_of(name: str, trained: Iterable[nn.Parameter], model: Any) -> list[Held]:
    """What the optimizer ``name`` keeps for each weight that is trained, of ``model`` or a head."""
    muons = matrices(model) if name == "muon" else ()
    return [state_bytes(name, p.numel(), _name_of(p), matrix=id(p) in muons) for p in trained]


def optimizer_bytes(parts: Parts, name: str) -> int:
    """What the optimizer ``name`` keeps on the device of ``parts``."""
    held = states_of(name, parts.trained, parts.paper.model)
    on_host = sum(h.host for h in held) if parts.device == "cpu" else 0
    return sum(h.device for h in held) + on_host


def stepping_bytes(parts: Parts, name: str) -> int:
    """What a step of it takes besides, while it lasts."""
    trained = parts.trained
    held = step_bytes(name, sum(p.numel() for p in trained), _name_of(trained[0]))
    return held.device + (held.host if parts.device == "cpu" else 0)


def _name_of(parameter: nn.Parameter) -> str:
    return str(parameter.dtype).removeprefix("torch.")
