"""The DPO family: how far the policy prefers the chosen response, measured against a reference.

Shapes: B pairs of this minibatch. ``logps`` are sums of log-probabilities over a response's tokens;
a response's log-ratio is ``logps - ref_logps``, and beta times that is its implicit reward. Losses
are sums over pairs divided by a count that the caller gives: pass the count of the *whole optimizer
step*, so that splitting a batch over accumulation steps or processes changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from rlmodules.functional.preference_losses import Loss, pair_metrics, smoothed


@dataclass(frozen=True)
class PairLogps:
    """What a DPO loss looks at. All [B], float32."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    """Response tokens."""
    rejected_lengths: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        return self.rejected - self.ref_rejected

    @property
    def delta(self) -> Tensor:
        return self.chosen_ratio - self.rejected_ratio

    @property
    def delta_per_token(self) -> Tensor:
        """The same with each response's log-ratio divided by its length."""
        return self.chosen_ratio / self.chosen_lengths - self.rejected_ratio / self.rejected_lengths


@dataclass(frozen=True)
class DPOShape:
    """The numbers that shape a DPO loss."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    """Probability that a label is wrong."""
    discopop_tau: float = 0.05
    simpo_gamma: float = 0.5
    """By how much the chosen reward a token is to be the higher."""


def sigmoid(x: PairLogps, s: DPOShape) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), with label smoothing."""
    return smoothed(s.beta * x.delta, s.label_smoothing)


def sigmoid_norm(x: PairLogps, s: DPOShape) -> Tensor:
    """DPO of length-normalised log-ratios (Lambert et al. 2024, arXiv:2411.15124, eq. 6)."""
    return smoothed(s.beta * x.delta_per_token, s.label_smoothing)


def hinge(x: PairLogps, s: DPOShape) -> Tensor:
    """SLiC's hinge (Zhao et al. 2023, arXiv:2305.10425)."""
    return relu(1 - s.beta * x.delta)


def ipo(x: PairLogps, s: DPOShape) -> Tensor:
    """IPO (Azar et al. 2023, arXiv:2310.12036, eq. 17), per token; its tau is our beta."""
    return (x.delta_per_token - 1 / (2 * s.beta)) ** 2


def robust(x: PairLogps, s: DPOShape) -> Tensor:
    """Unbiased under label noise (Chowdhury et al. 2024, arXiv:2403.00409)."""
    e, logits = s.label_smoothing, s.beta * x.delta
    return (-(1 - e) * logsigmoid(logits) + e * logsigmoid(-logits)) / (1 - 2 * e)


def exo_pair(x: PairLogps, s: DPOShape) -> Tensor:
    """EXO: reverse KL to the smoothed preference (Ji et al. 2024, arXiv:2402.00856, eq. 16)."""
    e, logits = torch.tensor(s.label_smoothing), s.beta * x.delta
    win = logits.sigmoid() * (logsigmoid(logits) - torch.log1p(-e))
    lose = (-logits).sigmoid() * (logsigmoid(-logits) - e.log())
    return win + lose


def nca_pair(x: PairLogps, s: DPOShape) -> Tensor:
    """NCA (Chen et al. 2024, arXiv:2402.05369): also holds the chosen likelihood up."""
    chosen, rejected = s.beta * x.chosen_ratio, s.beta * x.rejected_ratio
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(x: PairLogps, s: DPOShape) -> Tensor:
    """BCO's binary classification (Jung et al. 2024, arXiv:2404.04656), without its shift."""
    return -logsigmoid(s.beta * x.chosen_ratio) - logsigmoid(-s.beta * x.rejected_ratio)


def sppo_hard(x: PairLogps, s: DPOShape) -> Tensor:
    """SPPO with certain winners (Wu et al. 2024, arXiv:2405.00675, eq. 4.7)."""
    return (x.chosen_ratio - 0.5 / s.beta) ** 2 + (x.rejected_ratio + 0.5 / s.beta) ** 2


def aot(x: PairLogps, s: DPOShape) -> Tensor:
    """Alignment by optimal transport, paired (Melnyk et al. 2024, arXiv:2406.05882).

    Compares sorted batches, so its value depends on which pairs share a minibatch.
    """
    policy, reference = x.chosen - x.rejected, x.ref_chosen - x.ref_rejected
    return smoothed(s.beta * (policy.sort().values - reference.sort().values), s.label_smoothing)


def aot_unpaired(x: PairLogps, s: DPOShape) -> Tensor:
    """Alignment by optimal transport of chosen against rejected log-ratios, both sorted."""
    delta = x.chosen_ratio.sort().values - x.rejected_ratio.sort().values
    return smoothed(s.beta * delta, s.label_smoothing)


def apo_zero(x: PairLogps, s: DPOShape) -> Tensor:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7): chosen up, rejected down."""
    return 1 - (s.beta * x.chosen_ratio).sigmoid() + (s.beta * x.rejected_ratio).sigmoid()


def apo_down(x: PairLogps, s: DPOShape) -> Tensor:
    """APO-down (the same, eq. 8): both down, rejected more; for chosen ones below the policy."""
    return (s.beta * x.chosen_ratio).sigmoid() + 1 - (s.beta * x.delta).sigmoid()


def discopop(x: PairLogps, s: DPOShape) -> Tensor:
    """DiscoPOP's log-ratio modulated loss (Lu et al. 2024, arXiv:2406.08414, eq. 5)."""
    logits = s.beta * x.delta
    gate = (logits / s.discopop_tau).sigmoid()
    return -logsigmoid(logits) * (1 - gate) + (-logits).exp() * gate


def simpo(x: PairLogps, s: DPOShape) -> Tensor:
    """SimPO (Meng et al. 2024, arXiv:2405.14734, eq. 6): rewards a token, a margin apart; without a
    reference, whose log-probabilities are then 0."""
    return smoothed(s.beta * x.delta_per_token - s.simpo_gamma, s.label_smoothing)


PAIR_LOSSES: dict[str, Callable[[PairLogps, DPOShape], Tensor]] = {
    fn.__name__: fn
    for fn in (
        sigmoid,
        hinge,
        ipo,
        robust,
        exo_pair,
        nca_pair,
        bco_pair,
        sppo_hard,
        aot,
        aot_unpaired,
        apo_zero,
        apo_down,
        discopop,
        sigmoid_norm,
        simpo,
    )
}
DPO_LOSSES = (*PAIR_LOSSES, "sft")
"""Names as in TRL (``simpo`` is of its CPO). ``sft`` is the negative log-likelihood of the chosen
responses, a token."""


def dpo_loss(
    *,
    logps: PairLogps,
    loss_types: Mapping[str, float],
    shape: DPOShape,
    num_pairs: float,
    num_tokens: float,
) -> Loss:
    """The weighted sum of ``loss_types`` (name -> weight), each a mean.

    Args:
        num_pairs: pairs of the optimizer step, which pair losses are divided by.
        num_tokens: its chosen response tokens, which ``sft`` is divided by.

    Metrics: implicit rewards of both sides, ``accuracy`` (how often the chosen one's is higher),
    ``margin`` (by how much), log-probabilities of both.
    """
    loss = logps.chosen.new_zeros(())
    for name, weight in loss_types.items():
        if name == "sft":
            loss = loss - weight * logps.chosen.sum() / num_tokens
        else:
            loss = loss + weight * PAIR_LOSSES[name](logps, shape).sum() / num_pairs
    metrics = {
        "logps_chosen": logps.chosen.mean(),
        "logps_rejected": logps.rejected.mean(),
        "chosen_drift": logps.chosen_ratio.mean(),
    }
    metrics = {name: value.detach() for name, value in metrics.items()}
    rewards = shape.beta * logps.chosen_ratio, shape.beta * logps.rejected_ratio
    return loss, metrics | pair_metrics(*rewards)
