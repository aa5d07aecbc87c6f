"""Training batches: what an algorithm makes of the episodes of an iteration, and learns from.

``Experience`` (all episodes, with what the loss needs of each action) -> ``Minibatch`` (a few of
them, padded to their own longest). What episodes themselves are made of is in ``types.py``.

Shapes: B episodes, T tokens of one, A actions (tokens the policy sampled) of the longest, N actions
altogether. Sequences are ragged until ``rlmodules.models.layout`` lays them out. Per-action tensors
are left-aligned [B, A] with a mask; flat ones [N] hold the same numbers in row order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Sequences, and where in them the policy's own tokens stand.

    An episode without any (it failed, or was cut short and is not to be learned from) counts
    nowhere.
    """

    sequences: list[Tensor]
    """Token ids, [T_i]; on the CPU until they are laid out for the model."""
    positions: list[Tensor]
    """Of each action's token in its sequence, [A_i], at least 1; on the CPU."""
    actions: Tensor
    """[N], the sampled tokens themselves."""
    mask: Tensor
    """[B, A], True where an action exists."""
    group_sizes: tuple[int, ...] | None = None
    """How many neighbours each begin alike; None: those that are equal up to their first action."""

    @classmethod
    def collate(
        cls,
        sequences: Sequence[Tensor],
        positions: Sequence[Tensor],
        group_sizes: tuple[int, ...] | None = None,
    ) -> "TokenBatch":
        """``sequences`` [T_i] whose sampled tokens stand at ``positions`` [A_i]."""
        taken = torch.cat([ids[at] for ids, at in zip(sequences, positions, strict=True)])
        mask = action_mask(positions)
        return cls(list(sequences), list(positions), taken, mask, group_sizes)

    def groups(self) -> list[list[int]]:
        """Rows in groups of neighbours that begin alike."""
        if self.group_sizes is not None:
            return [
                rows.tolist()
                for rows in torch.arange(len(self.sequences)).split(list(self.group_sizes))
            ]
        groups: list[list[int]] = []
        before: Tensor | None = None
        for row, (sequence, at) in enumerate(zip(self.sequences, self.positions, strict=True)):
            prompt = sequence[: int(at[0])] if len(at) else before  # nothing of it is computed
            if prompt is None or before is None or len(prompt) < 2:  # one token is no saving
                groups.append([row])
            elif torch.equal(prompt, before):
                groups[-1].append(row)
            else:
                groups.append([row])
            before = prompt
        return groups

    def scatter(self, flat_N: Tensor) -> Tensor:
        """[N] -> [B, A], zeros under the mask; differentiable."""
        out = flat_N.new_zeros(self.mask.shape)
        return out.masked_scatter(self.mask, flat_N)

    def to(self, device: torch.device | str) -> "TokenBatch":
        return replace(self, actions=self.actions.to(device), mask=self.mask.to(device))


class Minibatch:
    """What one ``training_step`` takes.

    Not a dataclass: Lightning looks inside those, and under ``precision=bf16-true`` would round
    advantages and log-probabilities to bfloat16.

    Args:
        tokens: the episodes.
        old_logprobs: [B, A], of the policy that sampled.
        ref_logprobs: [B, A], of the reference; None where the loss does not hold it close.
        advantages: [B, A].
        values: [B, A], the critic's prediction at sampling time; None without a critic.
        returns: [B, A], what the critic should have predicted; None without a critic.
        num_actions: what sums over actions are divided by: the optimizer step's action count, for
            one rank and one accumulated minibatch.
    """

    def __init__(
        self,
        tokens: TokenBatch,
        old_logprobs: Tensor,
        advantages: Tensor,
        values: Tensor | None,
        returns: Tensor | None,
        num_actions: float,
        ref_logprobs: Tensor | None = None,
    ) -> None:
        self.tokens, self.num_actions = tokens, num_actions
        self.old_logprobs, self.ref_logprobs = old_logprobs, ref_logprobs
        self.advantages, self.values, self.returns = advantages, values, returns

    def to(self, device: torch.device | str) -> "Minibatch":
        moved = {k: v.to(device) if hasattr(v, "to") else v for k, v in vars(self).items()}
        return Minibatch(**moved)


@dataclass(frozen=True)
class Experience:
    """All episodes of one iteration, ready to be learned from. Lives on the CPU."""

    sequences: list[Tensor]
    """Token ids of each episode, [T_i]."""
    positions: list[Tensor]
    """Where the policy's own tokens stand in it, [A_i]."""
    mask: Tensor
    """[B, A]"""
    old_logprobs: Tensor
    """[B, A]"""
    advantages: Tensor
    """[B, A]"""
    values: Tensor | None = None
    """[B, A]; algorithms without a critic leave it out, and ``returns`` with it."""
    returns: Tensor | None = None
    """[B, A]"""
    ref_logprobs: Tensor | None = None
    """[B, A], of the reference; left out by algorithms whose loss does not need it."""
    rewards: Tensor | None = None
    """[B, A], with the KL penalty; for whoever looks at it, left out where rewards are whole."""

    def __len__(self) -> int:
        return len(self.sequences)

    def num_actions(self, rows: Sequence[int]) -> int:
        """Actions in these episodes together."""
        return sum(len(self.positions[row]) for row in rows)

    def minibatch(self, rows: Sequence[int], num_actions: float) -> Minibatch:
        """These episodes, padded to their own longest."""
        tokens = TokenBatch.collate(
            [self.sequences[row] for row in rows], [self.positions[row] for row in rows]
        )
        cut = (list(rows), slice(tokens.mask.shape[1]))
        return Minibatch(
            tokens=tokens,
            old_logprobs=self.old_logprobs[cut],
            advantages=self.advantages[cut],
            values=None if self.values is None else self.values[cut],
            returns=None if self.returns is None else self.returns[cut],
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[cut],
            num_actions=num_actions,
        )

    def cpu(self) -> "Experience":
        """A detached copy on the CPU."""
        state = self.state_dict()
        tensors = {name: x.detach().cpu() for name, x in state.items() if isinstance(x, Tensor)}
        return Experience(**state | tensors)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and lists only, for a checkpoint that ``weights_only=True`` can read."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def action_mask(positions: Sequence[Tensor]) -> Tensor:
    """[B, A], True where an action exists; one column at least."""
    counts = torch.tensor([len(position) for position in positions])
    return torch.arange(max(int(counts.max()), 1))[None, :] < counts[:, None]
