"""What policy, reference and critic say of episodes that were played.

Shapes: B episodes, A actions of the longest.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datamodules.experience import TokenBatch, action_mask
from datamodules.types import Evaluation, Trajectory, sequence_of
from rlmodules.functional import kl_estimate
from rlmodules.models import PolicyModel, Reference

EVALUATION_TOKENS = 8192
"""Tokens, padding included, of one forward pass without gradients."""


@torch.no_grad()
def evaluate(
    policy: PolicyModel,
    reference: Reference | None,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float,
    recompute: bool = True,
) -> Evaluation:
    """Log-probabilities under policy and reference, and values, of all actions; on the CPU.

    Args:
        recompute: False takes the policy's log-probabilities as they were when it sampled.
    """
    pairs = [sequence_of(trajectory) for trajectory in trajectories]
    sequences, positions = [list(column) for column in zip(*pairs, strict=True)]
    mask = action_mask(positions)
    logprobs = torch.zeros(mask.shape, dtype=torch.float32)
    values = torch.zeros_like(logprobs)
    ref_logprobs = None if reference is None else torch.zeros_like(logprobs)
    if not recompute:
        # By position, as scoring goes on meanwhile and may mark an episode as failed.
        both = zip(trajectories, positions, strict=True)
        sampled = [torch.cat(trajectory.logprobs) for trajectory, at in both if len(at)]
        logprobs[mask] = torch.cat([torch.zeros(0), *sampled])
    for rows in _batches(sequences, keep_order=policy.packs):
        if not recompute and reference is None:
            break
        tokens = TokenBatch.collate([sequences[r] for r in rows], [positions[r] for r in rows])
        where = tokens.mask.nonzero()
        at, tokens = (torch.tensor(rows)[where[:, 0]], where[:, 1]), tokens.to(policy.device)
        if recompute:
            has_critic = policy.value_head is not None
            scores = policy.score(tokens, temperature=temperature, with_values=has_critic)
            logprobs[at] = scores.logprobs.cpu()
            if scores.values is not None:
                values[at] = scores.values.cpu()
        if reference is not None and ref_logprobs is not None:
            with reference.of(policy) as ref:
                ref_logprobs[at] = ref.score(tokens, temperature=temperature).logprobs.cpu()
    return Evaluation(sequences, positions, mask, logprobs, ref_logprobs, values)


def sampler_kl(evaluation: Evaluation, trajectories: Sequence[Trajectory]) -> Tensor:
    """[B, A], the k3 estimate of KL(sampler || policy as training scores it), in nats.

    Both are the same policy: it is 0, but for what rounding and other kernels make of it, and for
    what truncation cuts where the sampler's log-probabilities are of what was left (``Response``).
    """
    said = _of_actions(evaluation, [torch.cat(t.logprobs) for t in trajectories])
    return kl_estimate(torch.where(evaluation.mask, said, 0.0), _known(evaluation), "k3")


def kept_mass(evaluation: Evaluation, trajectories: Sequence[Trajectory]) -> Tensor:
    """[B, A], the probability of what truncation left to choose from.

    Where a sampler does not say it, an estimate that is right in the mean: a token's probability
    under the policy over that among what was left, whose mean over the latter is the former's mass.
    """
    said = _of_actions(evaluation, [torch.cat(t.logprobs) for t in trajectories])
    kept = _of_actions(evaluation, [_kept(t) for t in trajectories])
    return torch.where(kept < 0, (_known(evaluation) - said).exp(), kept)


def drawn_logprobs(evaluation: Evaluation, trajectories: Sequence[Trajectory]) -> Tensor:
    """[B, A], of the distributions that the tokens were drawn from: of what truncation left."""
    said = _of_actions(evaluation, [torch.cat(t.logprobs) for t in trajectories])
    kept = _of_actions(evaluation, [_kept(t) for t in trajectories])
    return said - torch.where(kept > 0, kept, 1.0).log()


def _kept(trajectory: Trajectory) -> Tensor:
    known = trajectory.kept_mass or [1.0] * sum(map(len, trajectory.actions))
    return torch.tensor(known, dtype=torch.float32)


def _known(evaluation: Evaluation) -> Tensor:
    return torch.where(evaluation.mask, evaluation.logprobs, 0.0)


def _of_actions(evaluation: Evaluation, numbers: Sequence[Tensor]) -> Tensor:
    """[B, A], each episode's numbers in the places of its actions; of those that count, else 0."""
    placed = torch.zeros_like(evaluation.logprobs)
    both = zip(numbers, evaluation.positions, strict=True)
    some = [mine for mine, at in both if len(at)]  # the positions of a failed episode are taken out
    placed[evaluation.mask] = torch.cat([torch.zeros(0), *some])
    return placed


def _batches(sequences: Sequence[Tensor], *, keep_order: bool) -> Iterator[list[int]]:
    """Rows in batches of at most ``EVALUATION_TOKENS`` tokens: as they come, or short ones first,
    when each is padded to the longest of its batch."""
    batch: list[int] = []
    tokens = 0
    order = range(len(sequences))
    for row in order if keep_order else sorted(order, key=lambda r: len(sequences[r])):
        size = len(sequences[row])
        tokens = tokens + size if keep_order else (len(batch) + 1) * size
        if batch and tokens > EVALUATION_TOKENS:
            yield batch
            batch, tokens = [], size
        batch.append(row)
    yield batch
