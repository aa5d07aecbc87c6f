"""Supervised fine-tuning: the likelihood of demonstrations (Ouyang et al. 2022, arXiv:2203.02155,
section 3.5, step 1).

What teaches a base model a format, before preferences and rewards. The loss of an optimizer step is
the mean over its learned tokens, however they lie in batches; no token is padding, and no text sees
another one, as all of a batch stand in one row with an attention of their own.

One step, from top to bottom: ``losses`` lays a batch out, takes the log-probabilities of what is
learned of it, and hands them to ``sft_loss``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules.demonstrations.dataset import Demonstrated
from datamodules.demonstrations.rows import Demonstration, answer_for, prompt_for
from datamodules.examples.dataset import ExampleBatch
from datamodules.experience import TokenBatch
from datamodules.text.prompts import encode_prompt, prompt_text
from datamodules.types import SamplingParams
from rlmodules.algorithms.config import OfflineConfig
from rlmodules.algorithms.means import Means
from rlmodules.algorithms.text_policy import TextPolicy
from rlmodules.checks import require, require_known
from rlmodules.functional import SFT_LOSSES, sft_loss
from rlmodules.sampling.decoding import sample


@dataclass
class SFTConfig(OfflineConfig):
    """Settings of SFT; the Python API and the schema of ``conf/algo/sft.yaml`` alike."""

    learning_rate: float = 2e-5
    max_length: int = 1024
    """Most tokens of a text; it is cut on the right."""
    loss_type: str = "nll"
    """nll, or dft: each token weighted by its probability."""
    completion_only_loss: bool | None = None
    """Learn completions alone, or with false their prompts too; null: completions where rows have a
    prompt apart, else all of a text."""
    assistant_only_loss: bool = False
    """Of conversations, learn what the assistant says."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises to its peak."""
    eval_samples: int = 0
    """Held-out prompts that are answered at each evaluation, greedily, to be looked at."""
    max_new_tokens: int = 64
    """Longest such answer, in tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, {"loss_type": SFT_LOSSES})
        require(self, ("warmup_ratio",), lambda x: 0 <= x <= 1, "between 0 and 1")
        require(self, ("eval_samples",), lambda x: x >= 0, "0 or more")
        require(self, ("max_new_tokens",), lambda x: x >= 1, "at least 1")


class SFT(TextPolicy):
    """SFT of any causal language model; arguments as of ``TextPolicy``."""

    config_class = SFTConfig
    config: SFTConfig
    learns_from: ClassVar = "demonstrations"

    def losses(self, batch: ExampleBatch[Demonstrated]) -> tuple[Tensor, dict[str, Tensor]]:
        sequences = [example.sequences[0] for example in batch.examples]
        tokens = TokenBatch.collate(sequences, [example.learned for example in batch.examples])
        scores = self.policy.score(tokens)
        return sft_loss(
            logprobs_N=scores.logprobs,
            is_top_N=scores.is_top,
            loss_type=self.config.loss_type,
            num_tokens=batch.totals["num_tokens"],
        )

    def elements(self, batch: ExampleBatch[Demonstrated]) -> dict[str, int]:
        learned = sum(len(example.learned) for example in batch.examples)
        return {"nll": learned, "token_accuracy": learned}

    # ------------------------------------------------------------- held out

    def validation_step(self, batch: ExampleBatch[Demonstrated], batch_idx: int) -> Any:
        """Also what the policy answers to the first of the held-out prompts, a row each."""
        super().validation_step(batch, batch_idx)
        rows = [row for row in batch.rows.tolist() if row < self.config.eval_samples]
        items = [self.trainer.datamodule.eval_dataset.items[row] for row in rows]  # type: ignore[attr-defined]  # Lightning sets it
        return self.answers(items)

    @torch.no_grad()
    def answers(self, items: Sequence[Demonstration]) -> list[dict[str, Any]]:
        """``prompt``, ``response`` of the policy, and what was ``demonstrated``; without
        those that ask nothing or whose prompt leaves no room for an answer."""
        assert self.tokenizer is not None  # load_policy has seen to it
        new, positions = self.config.max_new_tokens, self.policy.positions
        asked = [(item, prompt) for item in items if (prompt := prompt_for(item)) is not None]
        encoded = [(*both, encode_prompt(self.tokenizer, both[1])) for both in asked]
        encoded = [(i, p, ids) for i, p, ids in encoded if positions.hold(len(ids) + new)]
        if not encoded:
            return []
        params = SamplingParams(max_new_tokens=new, temperature=0.0)
        prompts = [ids for _, _, ids in encoded]
        responses = sample(self.policy, self.tokenizer, prompts, params, range(len(prompts)))
        return [
            {
                "prompt": prompt_text(self.tokenizer, prompt),
                "response": self.tokenizer.decode(response.tokens, skip_special_tokens=True),
                "demonstrated": answer_for(item),
            }
            for (item, prompt, _), response in zip(encoded, responses, strict=True)
        ]

    def over_ranks(self, means: Means) -> dict[str, float]:
        """``means`` over all processes, and the perplexity of what they are of."""
        row = super().over_ranks(means)
        for stage in ("train", "val"):
            if f"{stage}/nll" in row:
                row[f"{stage}/perplexity"] = math.exp(min(row[f"{stage}/nll"], 700.0))
        return row
