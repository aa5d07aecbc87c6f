"""A language model that learns from pairs: what DPO and ORPO share."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.preferences.dataset import PreferenceBatch
from rlmodules.algorithms.offline import OfflineModule, require_offline, require_room
from rlmodules.checks import require
from rlmodules.functional import token_logprobs
from rlmodules.models import ModelConfig, backbone, load_model, load_tokenizer, projection
from rlmodules.models.heads import check_projection
from rlmodules.models.layout import Layout, can_pack, flat_hidden
from rlmodules.models.saving import save_language_model


@dataclass
class PairConfig:
    """Settings that all these algorithms have."""

    model_name: str = "google/gemma-2-2b"
    """Hub id, local folder, ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``."""
    learning_rate: float = 1e-6
    """Peak, of AdamW."""
    batch_size: int = 8
    """Pairs a backward pass, over all processes."""
    gradient_accumulation_steps: int = 2
    """Backward passes an optimizer step."""
    beta: float = 0.1
    """DPO: how strongly the policy is held to the reference; rewards are beta times log-ratios."""
    num_epochs: int = 1
    """Passes over the pairs."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises to its peak."""
    max_length: int = 512
    """Most tokens of prompt and response; the response is cut on the right."""
    max_prompt_length: int = 256
    """Most tokens of the prompt; it is cut on the left."""
    eval_every: int = 100
    """Optimizer steps between evaluations on held-out pairs; the end is always one."""
    save_every: int = 500
    """Optimizer steps between checkpoints; the end is always one."""
    device: str | None = None
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; None takes what there is."""
    lr_scheduler_type: str = "linear"
    """After the warm-up: linear, cosine, constant or constant_with_warmup."""
    weight_decay: float = 0.0
    """Of AdamW."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        require_offline(self)
        require(self, ("warmup_ratio",), lambda x: 0 <= x <= 1, "between 0 and 1")
        require(self, ("beta",), lambda x: x >= 0, "0 or more")


class PairPolicy(OfflineModule):
    """A causal language model and its tokenizer.

    Args:
        config: settings of the algorithm; a dataclass.
        model_config: how to load the model; default: ``config.model_name`` with LoRA off.
        model, tokenizer: used instead of loading what ``model_config`` names.

    Raises:
        ValueError: ``config.model_name`` and ``model_config.name`` differ.
    """

    def __init__(
        self,
        config: Any,
        model_config: ModelConfig | dict[str, Any] | None,
        model: nn.Module | None,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        model_config = ModelConfig.of(model_config, config.model_name, given=model is not None)
        super().__init__(tokenizer or load_tokenizer(model_config))
        with torch.random.fork_rng():  # new adapters are a function of the seed
            torch.manual_seed(config.seed)
            self.base_model = load_model(model_config) if model is None else model
        require_room(self.base_model, config.max_length)
        check_projection(self.base_model)
        self.packs = can_pack(backbone(self.base_model))
        self.save_hyperparameters({"config": asdict(config), "model_config": asdict(model_config)})
        self.config = config
        self.train()  # Lightning leaves the mode as it finds it

    def export(self, dirpath: Path, *, merge: bool = False) -> None:
        """Policy and tokenizer in ``dirpath``; see ``save_language_model``."""
        save_language_model(self.base_model, self.tokenizer, dirpath, merge=merge)

    def warmup_steps(self, total: int) -> int:
        return math.ceil(self.config.warmup_ratio * total)


def starts_of(batch: PreferenceBatch) -> list[int]:
    """First token of each side's response; nothing predicts the first token of a text."""
    return [max(length, 1) for length in batch.prompt_lengths for _ in range(2)]


def sequence_logps(model: nn.Module, layout: Layout, starts: Sequence[int]) -> list[Tensor]:
    """For each sequence the log-probabilities of its tokens from ``starts`` on, [T_s - start].

    Only hidden states that predict such a token reach the vocabulary. Where the sequences of a
    group go on alike after the prompt, their common tokens are predicted once, for all of them.

    Args:
        starts: first token of each sequence that counts, at least 1.
    """
    wanted = list(zip(layout.sequences, layout.index, starts, strict=True))
    before = torch.cat([index[start - 1 : -1] for _, index, start in wanted])
    tokens = torch.cat([sequence[start:] for sequence, _, start in wanted])
    # A hidden state and the token after it name a prediction; equal ones are made once.
    predictions, which = torch.unique(torch.stack([before, tokens]), dim=1, return_inverse=True)
    hidden = flat_hidden(backbone(model), layout)[predictions[0]]
    logprobs, _ = token_logprobs(hidden, projection(model), predictions[1], with_entropy=False)
    return list(logprobs[which].split([len(s) - start for s, _, start in wanted]))


def pair_sums(logprobs: Sequence[Tensor]) -> Tensor:
    """[B, 2], summed over each response of chosen and rejected in turn."""
    return torch.stack([response.sum() for response in logprobs]).view(-1, 2)


def pair_lengths(logprobs: Sequence[Tensor]) -> Tensor:
    """[B, 2], how many tokens each response has."""
    lengths = [len(response) for response in logprobs]
    return torch.tensor(lengths, dtype=torch.float32, device=logprobs[0].device).view(-1, 2)
