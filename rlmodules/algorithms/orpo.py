"""Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691).

Supervised fine-tuning on the chosen responses, and a penalty on the odds of the rejected ones, in
one loss without a reference model.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.preferences.dataset import PreferenceBatch
from rlmodules.algorithms.pair_policy import (
    PairConfig,
    PairPolicy,
    pair_lengths,
    pair_sums,
    sequence_logps,
    starts_of,
)
from rlmodules.functional import orpo_loss
from rlmodules.models import ModelConfig


@dataclass
class ORPOConfig(PairConfig):
    """Settings of ORPO; the Python API and the schema of ``conf/algo/orpo.yaml`` alike.

    ``beta`` weights the odds-ratio loss beside the likelihood (the paper's lambda).
    """


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
