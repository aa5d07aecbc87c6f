"""Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691).

Supervised fine-tuning on the chosen responses, and a penalty on the odds of the rejected ones, in
one loss without a reference model.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.preferences import PreferenceBatch
from rlmodules.checks import require
from rlmodules.functional import orpo_loss
from rlmodules.models import ModelConfig
from rlmodules.offline import require_offline
from rlmodules.pair_policy import PairPolicy, pair_lengths, pair_sums, sequence_logps, starts_of


@dataclass
class ORPOConfig:
    """Settings of ORPO; the Python API and the schema of ``conf/algo/orpo.yaml`` alike."""

    model_name: str = "google/gemma-2-2b"
    """Hub id, local folder, ``.gguf`` file, ``wheel:smollm2`` or ``random:tiny``."""
    learning_rate: float = 1e-6
    """Peak, of AdamW."""
    batch_size: int = 8
    """Pairs a backward pass, over all processes."""
    gradient_accumulation_steps: int = 2
    """Backward passes an optimizer step."""
    beta: float = 0.1
    """Weight of the odds-ratio loss beside the likelihood of the chosen responses (the paper's
    lambda)."""
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


class ORPO(PairPolicy):
    """ORPO over any causal language model; arguments as of ``PairPolicy``."""

    def __init__(
        self,
        config: ORPOConfig | dict[str, Any],
        model_config: ModelConfig | dict[str, Any] | None = None,
        *,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        config = ORPOConfig(**config) if isinstance(config, dict) else config
        super().__init__(config, model_config, model, tokenizer)

    def losses(self, batch: PreferenceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        starts = starts_of(batch)
        # The likelihood is of chosen texts from their second token on, prompts included.
        begin = [1 if i % 2 == 0 else start for i, start in enumerate(starts)]
        texts = sequence_logps(self.base_model, self.lay_out(batch), begin)
        shifts = [start - first for start, first in zip(starts, begin, strict=True)]
        responses = [text[shift:] for text, shift in zip(texts, shifts, strict=True)]
        sums, lengths = pair_sums(responses), pair_lengths(responses)
        return orpo_loss(
            chosen_logps_B=sums[:, 0],
            rejected_logps_B=sums[:, 1],
            chosen_lengths_B=lengths[:, 0],
            rejected_lengths_B=lengths[:, 1],
            chosen_text_logps_B=pair_sums(texts)[:, 0],
            beta=self.config.beta,
            num_pairs=batch.totals["num_pairs"],
            num_tokens=batch.totals["num_text_tokens"],
        )
