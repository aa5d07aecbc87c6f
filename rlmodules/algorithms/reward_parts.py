"""The parts of rewards that are weighted sums, for who weighs them otherwise.

Shapes: B episodes, K parts.
"""

import torch
from torch import Tensor

from datamodules.types import Rollout


def reward_parts(rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Weights [K], and the unweighted parts [B, K] of the rewards, NaN where one does not apply.

    Raises:
        ValueError: rewards are no weighted sums, or of more than the parts that have weights.
    """
    weights, trajectories = rollout.reward_weights, rollout.trajectories
    if not weights:
        raise ValueError(
            "algo.multi_objective_aggregation=normalize_then_sum takes rewards that are weighted"
            " sums, and this environment gives one: set reward=weighted with reward.components, or"
            " algo.multi_objective_aggregation=sum_then_normalize"
        )
    found = [[t.metrics.get(f"reward_{name}", torch.nan) for name in weights] for t in trajectories]
    parts = torch.tensor(found, dtype=torch.float64).view(-1, len(weights))
    values = torch.tensor(list(weights.values()), dtype=torch.float64)
    sums = (parts.nan_to_num() * values).sum(1)
    for trajectory, total in zip(trajectories, sums.tolist(), strict=True):
        if trajectory.failed or trajectory.unscored:
            continue
        if abs(trajectory.total_reward - total) > 1e-4 * (1 + abs(total)):
            raise ValueError(
                f"a reward of {trajectory.total_reward:g} is not the weighted sum {total:g} of its"
                f" parts {', '.join(weights)}: the environment pays something besides, of which"
                " algo.multi_objective_aggregation=normalize_then_sum would know nothing; set it to"
                " sum_then_normalize"
            )
    return values, parts
