"""Kahneman-Tversky Optimization (Ethayarajh et al. 2024, arXiv:2402.01306).

A policy learns from single responses that are desirable or not, as thumbs up or down. What a
response gains over the reference is held against how far policy and reference are apart at all:
their KL, seen on responses to other prompts of the batch, over all processes. It is estimated for
each backward pass, as its authors and TRL do, so accumulation changes it a little.

One step, from top to bottom: ``losses`` takes the log-ratios of the responses and, without
gradients, of mismatched ones, and hands them to ``kto_loss``.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from datamodules.unpaired.dataset import UnpairedBatch
from rlmodules.algorithms.config import PreferenceConfig
from rlmodules.algorithms.means import Means
from rlmodules.algorithms.text_policy import TextPolicy, response_logprobs
from rlmodules.checks import require, require_known
from rlmodules.functional import KTO_LOSSES, kto_loss
from rlmodules.models import PolicyModel, Reference

BALANCED = (1.0, 4 / 3)
"""Desirable responses over others, each by its weight: what the paper recommends."""


@dataclass
class KTOConfig(PreferenceConfig):
    """Settings of KTO; the Python API and the schema of ``conf/algo/kto.yaml`` alike."""

    learning_rate: float = 1e-6
    beta: float = 0.1
    """How strongly the policy is held to the reference; rewards are beta times log-ratios."""
    loss_type: str = "kto"
    """kto, or apo_zero_unpaired: without the KL."""
    desirable_weight: float = 1.0
    """Of the losses of desirable responses."""
    undesirable_weight: float = 1.0
    """Of those of the others."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises to its peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, {"loss_type": KTO_LOSSES})
        require(self, ("warmup_ratio",), lambda x: 0 <= x <= 1, "between 0 and 1")
        require(
            self, ("beta", "desirable_weight", "undesirable_weight"), lambda x: x > 0, "positive"
        )


class KTO(TextPolicy):
    """KTO over any causal language model; arguments as of ``TextPolicy``."""

    config_class = KTOConfig
    config: KTOConfig
    learns_from: ClassVar = "unpaired"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference = Reference(self.policy)

    def losses(self, batch: UnpairedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        c, starts = self.config, [example.starts[0] for example in batch.examples]
        compared = [[example.sequences[0]] for example in batch.examples]
        logps_B = response_sums(self.policy, compared, starts)[:, 0]
        with torch.no_grad():
            reference_kl = logps_B.new_zeros(())
            if c.loss_type == "kto":
                others = [[other] for other in batch.mismatched(c.max_length)]
                compared = [a + b for a, b in zip(compared, others, strict=True)]
                of_others_B = response_sums(self.policy, others, starts)[:, 0]
            with self.reference.of(self.policy) as reference:
                of_reference = response_sums(reference, compared, starts)
            if c.loss_type == "kto":
                reference_kl = self.mean_over_ranks(of_others_B - of_reference[:, 1])
        return kto_loss(
            logratios_B=logps_B - of_reference[:, 0],
            desirable_B=batch.desirable.to(logps_B.device),
            reference_kl=reference_kl,
            loss_type=c.loss_type,
            beta=c.beta,
            desirable_weight=c.desirable_weight,
            undesirable_weight=c.undesirable_weight,
            num_examples=batch.totals["num_examples"],
        )

    def mean_over_ranks(self, values_B: Tensor) -> Tensor:
        """The mean of the values of all processes, each of which has some."""
        if self._trainer is None or self.trainer.world_size == 1:
            return values_B.mean()
        count = torch.tensor(float(len(values_B)), device=values_B.device)
        total, number = self.sum_over_ranks(torch.stack([values_B.sum(), count]))
        return (total / number).to(values_B.device)

    def elements(self, batch: UnpairedBatch) -> dict[str, int]:
        desirable = int(batch.desirable.sum())
        return {"reward_chosen": desirable, "reward_rejected": len(batch) - desirable}

    def over_ranks(self, means: Means) -> dict[str, float]:
        """``means`` over all processes, and by how much rewards of desirable responses are the
        higher."""
        row = super().over_ranks(means)
        for stage in ("train", "val"):
            if f"{stage}/reward_chosen" in row:
                apart = row[f"{stage}/reward_chosen"] - row[f"{stage}/reward_rejected"]
                row[f"{stage}/margin"] = apart
        return row

    def on_fit_start(self) -> None:
        """Say so where one kind of responses outweighs the other."""
        c = self.config
        desirable, others = self.trainer.datamodule.train_dataset.counts  # type: ignore[attr-defined]  # Lightning's
        if not desirable or not others:
            warnings.warn(
                f"all {desirable + others} responses are {'' if desirable else 'not '}desirable:"
                " KTO learns from both kinds",
                stacklevel=2,
            )
            return
        ratio = c.desirable_weight * desirable / (c.undesirable_weight * others)
        if not 0.95 * BALANCED[0] <= ratio <= 1.05 * BALANCED[1]:
            balanced = c.undesirable_weight * others / desirable
            warnings.warn(
                f"{desirable} responses are desirable and {others} are not: weighted, that is"
                f" {ratio:.2f} to 1, and 1 to 1.33 is recommended: algo.desirable_weight="
                f"{balanced:.3g} balances them",
                stacklevel=2,
            )


def response_sums(
    policy: PolicyModel, groups: Sequence[Sequence[Tensor]], starts: Sequence[int]
) -> Tensor:
    """[B, K], log-probabilities of responses, summed over their tokens.

    Args:
        groups: B prompts with K responses each, token ids.
        starts: first token of the responses to each prompt.
    """
    first = [start for group, start in zip(groups, starts, strict=True) for _ in group]
    sums = [response.sum() for response in response_logprobs(policy, groups, first)]
    return torch.stack(sums).view(len(groups), -1)
