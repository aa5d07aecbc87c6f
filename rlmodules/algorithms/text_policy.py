"""A language model that learns from texts: what SFT, DPO and ORPO share.

And of the last two, which learn from pairs: settings, and log-probabilities of responses.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.ends import end_ids
from datamodules.examples.dataset import ExampleBatch
from datamodules.experience import TokenBatch
from rlmodules.algorithms.base import AlgorithmModule
from rlmodules.algorithms.config import PreferenceConfig
from rlmodules.algorithms.offline import OfflineModule, require_room
from rlmodules.algorithms.policy import load_policy, policy_from_export
from rlmodules.checks import require
from rlmodules.models import ModelConfig, PolicyModel
from rlmodules.models.saving import save_language_model


@dataclass
class PairConfig(PreferenceConfig):
    """Settings of language models that learn from pairs."""

    learning_rate: float = 1e-6
    gradient_accumulation_steps: int = 2
    beta: float = 0.1
    """DPO: how strongly the policy is held to the reference; rewards are beta times log-ratios."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises to its peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("warmup_ratio",), lambda x: 0 <= x <= 1, "between 0 and 1")
        require(self, ("beta",), lambda x: x >= 0, "0 or more")


class TextPolicy(OfflineModule):
    """A causal language model and its tokenizer.

    Args:
        config: settings, or a dict of them (as a checkpoint holds).
        model_config, model, tokenizer: see ``load_policy``.
    """

    config_class: ClassVar[type[Any]]
    config: Any
    saved_as: ClassVar = {"policy.base_model.": "base_model."}

    def __init__(
        self,
        config: Any | dict[str, Any],
        model_config: ModelConfig | dict[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        c = self.config_class(**config) if isinstance(config, dict) else config
        policy, tokenizer, model_config = load_policy(
            PolicyModel, c, model_config, model, tokenizer
        )
        super().__init__(tokenizer)
        if not end_ids(tokenizer):
            warnings.warn(
                "no end token is known (tokenizer.eos_token, its chat template's or"
                " generation_config's): the policy is not taught where a response ends",
                stacklevel=2,
            )
        require_room(policy.positions, c.max_length)
        if model_config.attn_implementation == "auto":
            policy.enable_packing()
        if model_config.compile:
            policy.compile_layers()
        else:
            policy.keep_less()
        self.policy, self.config = policy, c
        self.keep_settings(model_config)
        self.train()  # Lightning leaves the mode as it finds it

    @property
    def base_model(self) -> nn.Module:
        """The policy's causal language model, adapters included."""
        return self.policy.base_model

    def export(self, dirpath: Path, *, merge: bool | None = None, dtype: str | None = None) -> None:
        """Policy and tokenizer in ``dirpath``; see ``save_language_model``."""
        assert self.tokenizer is not None  # load_policy has seen to it
        save_language_model(self.base_model, self.tokenizer, dirpath, merge=merge, dtype=dtype)

    def from_export(self, dirpath: Path) -> "AlgorithmModule":
        return policy_from_export(self, dirpath)

    def warmup_steps(self, total: int) -> int:
        return math.ceil(self.config.warmup_ratio * total)


def response_logprobs(
    policy: PolicyModel, groups: Sequence[Sequence[Tensor]], starts: Sequence[int]
) -> list[Tensor]:
    """For each sequence the log-probabilities of its tokens from ``starts`` on, [T_i - start].

    Args:
        groups: sequences that begin alike, token ids.
        starts: first token of each sequence that counts, at least 1.
    """
    sequences = [sequence for group in groups for sequence in group]
    positions = [torch.arange(start, len(s)) for s, start in zip(sequences, starts, strict=True)]
    tokens = TokenBatch.collate(sequences, positions, group_sizes=tuple(map(len, groups)))
    return list(policy.score(tokens).logprobs.split([len(at) for at in positions]))


def starts_of(batch: ExampleBatch[Any]) -> list[int]:
    """First token of each side's response; nothing predicts the first token of a text."""
    return [max(length, 1) for length in batch.prompt_lengths for _ in range(2)]


def pair_sums(logprobs: Sequence[Tensor]) -> Tensor:
    """[B, 2], summed over each response of chosen and rejected in turn."""
    return torch.stack([response.sum() for response in logprobs]).view(-1, 2)


def pair_lengths(logprobs: Sequence[Tensor]) -> Tensor:
    """[B, 2], how many tokens each response has."""
    lengths = [len(response) for response in logprobs]
    return torch.tensor(lengths, dtype=torch.float32, device=logprobs[0].device).view(-1, 2)
