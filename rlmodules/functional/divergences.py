"""How far a policy's next-token distributions are from a teacher's, over the whole vocabulary.

Both sides' [tokens, vocabulary] logits exist for one chunk of rows at a time, and are computed
again for the backward pass.

Shapes: N positions, V ids that both predict, H and H' hidden sizes of policy and teacher.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlmodules.functional.logprobs import CHUNK_BYTES, Projection, size_of


@dataclass(frozen=True)
class Predictions:
    """What predicts N tokens: hidden states, and how they become logits."""

    states: Tensor
    """[N, H]"""
    projection: Projection

    def logprobs(self, rows: slice, ids: int, temperature: float) -> Tensor:
        """Float32 [rows, ids], in nats, of ``softmax(logits[:ids] / temperature)``."""
        logits = self.projection.logits(self.states[rows])[:, :ids]
        return (logits / temperature).log_softmax(-1)


def generalized_jsd(logp_NV: Tensor, teacher_logp_NV: Tensor, beta: float) -> Tensor:
    """Generalized Jensen-Shannon divergence of each row [N], in nats.

    ``beta KL(teacher || m) + (1 - beta) KL(policy || m)`` with the mixture
    ``m = beta teacher + (1 - beta) policy`` (Agarwal et al. 2023, arXiv:2306.13649, eq. 1). At its
    ends it would be 0, and stands for what it goes to when it is scaled (section 3.1, and TRL's
    ``beta``): 0 is the forward ``KL(teacher || policy)``, 1 the reverse ``KL(policy || teacher)``.
    """
    if beta == 0:
        return _kl(teacher_logp_NV, logp_NV)
    if beta == 1:
        return _kl(logp_NV, teacher_logp_NV)
    weight = torch.tensor(beta, dtype=logp_NV.dtype, device=logp_NV.device)
    mixture = torch.logaddexp(logp_NV + (-weight).log1p(), teacher_logp_NV + weight.log())
    return beta * _kl(teacher_logp_NV, mixture) + (1 - beta) * _kl(logp_NV, mixture)


def divergence(
    policy: Predictions,
    teacher: Predictions,
    *,
    beta: float,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``generalized_jsd`` of each position, and the policy's entropy there, in nats.

    Ids that one of them alone has (a matrix that was padded) are left out on both sides.

    Args:
        temperature: both distributions are ``softmax(logits / temperature)``.
        chunk_bytes: size of a chunk of one side's float32 logits; default: ``CHUNK_BYTES``.

    Returns:
        Divergences [N], differentiable in the policy's states and weights; entropies [N].
    """
    ids = min(len(policy.projection.weight), len(teacher.projection.weight))
    device = policy.states.device.type
    rows = max(1, (chunk_bytes or size_of(CHUNK_BYTES, device)) // (4 * ids))
    policy, teacher = _ready(policy), _ready(teacher)

    def of(start: int) -> tuple[Tensor, Tensor]:
        at = slice(start, start + rows)
        logp, wanted = (side.logprobs(at, ids, temperature) for side in (policy, teacher))
        entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
        return generalized_jsd(logp, wanted.detach(), beta), entropy

    with torch.autocast(device, enabled=False):
        starts = range(0, len(policy.states), rows) or (0,)  # of none there is a graph all the same
        parts = [checkpoint(of, start, use_reentrant=False) for start in starts]
    divergences, entropies = zip(*parts, strict=True)
    return torch.cat(divergences), torch.cat(entropies)


def _ready(side: Predictions) -> Predictions:
    """``side`` in the type that is computed in, which is autocast's where that is on."""
    projection = side.projection.in_autocast(side.states.device.type)
    return Predictions(side.states.to(projection.weight.dtype), projection)


def _kl(logp: Tensor, other_logp: Tensor) -> Tensor:
    """KL(p || other) of rows [N, V] of log-probabilities."""
    return (logp.exp() * (logp - other_logp)).sum(-1)
