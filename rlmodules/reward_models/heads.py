"""Heads of reward models. In float32, whatever the type of the backbone, unless the Trainer itself
makes all weights half precision.

Shapes: B texts, H hidden size, L labels.
"""

import torch
from torch import Tensor, nn


class RewardHead(nn.Module):
    """Dropout and one linear layer. Starts out scoring everything exactly 0."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, num_labels, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, H] -> [B, L]"""
        with torch.autocast(pooled.device.type, enabled=False):
            return self.linear(self.dropout(pooled.to(self.linear.weight.dtype))).float()


class Comparison(nn.Module):
    """What two pooled texts together say beyond their scores: ``f(a, b) - f(b, a)``.

    Antisymmetric, so that P(A > B) + P(B > A) = 1. Starts out as exactly 0: plain Bradley-Terry.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * hidden_size, hidden_size, dtype=torch.float32)
        self.output = nn.Linear(hidden_size, 1, bias=False, dtype=torch.float32)
        nn.init.zeros_(self.output.weight)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, H], [B, H] -> [B]"""
        with torch.autocast(a.device.type, enabled=False):
            a, b = a.to(self.hidden.weight.dtype), b.to(self.hidden.weight.dtype)
            both = torch.stack([torch.cat([a, b], dim=-1), torch.cat([b, a], dim=-1)])
            first, second = self.output(torch.relu(self.hidden(both))).squeeze(-1)
            return (first - second).float()
