"""A reward model that compares two texts directly, with both before its eyes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rlmodules.models.layout import unpad
from rlmodules.models.modes import evaluating
from rlmodules.reward_models.heads import Comparison
from rlmodules.reward_models.scalar import RewardModel


class PairwiseRewardModel(RewardModel):
    """P(A > B) = sigmoid(r(A) - r(B) + g(A, B)), with g antisymmetric.

    ``r`` alone is the reward that a policy is given. Arguments as of ``RewardModel``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed + 1)
            self.comparison = Comparison(self.hidden_size)

    def forward_pair(
        self,
        input_ids_a: Tensor,
        attention_mask_a: Tensor,
        input_ids_b: Tensor,
        attention_mask_b: Tensor,
    ) -> Tensor:
        """[B, 1], the log-odds that A is the better text; its sigmoid is P(A > B)."""
        a, b = unpad(input_ids_a, attention_mask_a), unpad(input_ids_b, attention_mask_b)
        return self._log_odds([[*left, *right] for left, right in zip(a, b, strict=True)])[:, None]

    def compare_ids(
        self,
        firsts: Sequence[Sequence[int]],
        seconds: Sequence[Sequence[int]],
        batch_size: int = 8,
    ) -> list[float]:
        """Log-odds that the first of each two tokenized texts is the better one."""
        pairs = [[torch.tensor(a), torch.tensor(b)] for a, b in zip(firsts, seconds, strict=True)]
        log_odds = []
        with evaluating(self):
            for start in range(0, len(pairs), batch_size):
                log_odds += self._log_odds(pairs[start : start + batch_size]).tolist()
        return log_odds

    def _log_odds(self, pairs: Sequence[Sequence[Tensor]]) -> Tensor:
        """[B]"""
        first, second = self.pair_scores(self.pooled(self.lay_out_texts(pairs)))
        return first - second

    def compute_bradley_terry_loss(
        self,
        input_ids_a: Tensor,
        attention_mask_a: Tensor,
        input_ids_b: Tensor,
        attention_mask_b: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Mean cross-entropy of ``labels`` [B]: 1 where A is preferred, 0 where B is."""
        logits = self.forward_pair(input_ids_a, attention_mask_a, input_ids_b, attention_mask_b)
        return binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits).view(-1))

    def pair_scores(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The comparison is shared out between the two, so that their difference is the log-odds
        and their mean that of the rewards."""
        chosen, rejected = super().pair_scores(pooled)
        joint = self.comparison(pooled[0::2], pooled[1::2]) / self.config.temperature
        return chosen + joint / 2, rejected - joint / 2
