"""Odds Ratio Preference Optimization (Hong et al. 2024, arXiv:2403.07691).

Supervised fine-tuning on the chosen responses, and a penalty on the odds of the rejected ones, in
one loss without a reference model.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from datamodules.examples.dataset import ExampleBatch
from rlmodules.algorithms.text_policy import (
    PairConfig,
    TextPolicy,
    pair_lengths,
    pair_sums,
    response_logprobs,
    starts_of,
)
from rlmodules.functional import orpo_loss


@dataclass
class ORPOConfig(PairConfig):
    """Settings of ORPO; the Python API and the schema of ``conf/algo/orpo.yaml`` alike.

    ``beta`` weights the odds-ratio loss beside the likelihood (the paper's lambda).
    """


class ORPO(TextPolicy):
    """ORPO over any causal language model; arguments as of ``TextPolicy``."""

    config_class = ORPOConfig
    config: ORPOConfig

    def losses(self, batch: ExampleBatch[Any]) -> tuple[Tensor, dict[str, Tensor]]:
        starts = starts_of(batch)
        # The likelihood is of chosen texts from their second token on, prompts included.
        begin = [1 if i % 2 == 0 else start for i, start in enumerate(starts)]
        texts = response_logprobs(self.policy, batch.sequences, begin)
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
            num_pairs=batch.totals["num_examples"],
            num_tokens=batch.totals["num_text_tokens"],
        )
