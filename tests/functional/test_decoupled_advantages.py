"""GDPO's advantages: TRL's values, and what they do not depend on."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nan, tensor
from torch.testing import assert_close

from rlmodules.functional import decoupled_advantages, group_advantages

PARTS = tensor([[1.0, 0.2], [0.0, 0.9], [1.0, nan], [0.0, 0.4],
                [1.0, 1.0], [1.0, 0.5], [1.0, 0.25], [1.0, 0.0]])  # fmt: skip
WEIGHTS = tensor([1.0, 0.5])
TRL = tensor([0.710353, -0.49149, 1.366943, -1.585807, 1.039687, 0.115521, -0.346562, -0.808645])
"""Of GRPOTrainer 1.16.0 under multi_objective_aggregation="normalize_then_sum"."""


def test_values_are_those_of_trl():
    assert_close(decoupled_advantages(PARTS, WEIGHTS, 4), TRL, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor, shift", [(100.0, 0.0), (1.0, 7.0), (0.5, -3.0)])
def test_how_widely_a_part_varies_and_around_what_does_not_matter(factor, shift):
    """It does where the sum is normalized: there the wider part rules."""
    other = PARTS * tensor([1.0, factor]) + tensor([0.0, shift])
    found = [decoupled_advantages(parts, WEIGHTS, 4) for parts in (PARTS, other)]
    assert_close(*found, rtol=0, atol=2e-3)  # deviations have 1e-4 added
    sums = [group_advantages((parts.nan_to_num() * WEIGHTS).sum(1), torch.ones(8).bool(), 4)
            for parts in (PARTS, other)]  # fmt: skip
    assert factor == 1.0 or not torch.allclose(*sums, atol=0.05)


def test_an_episode_that_nothing_applies_to_has_no_advantage_and_no_say():
    missing = PARTS.clone()
    missing[3] = nan
    found = decoupled_advantages(missing, WEIGHTS, 4)
    assert found[3] == 0 and found.sum().abs() < 1e-5
    other = missing.clone()
    other[3] = tensor([nan, nan])
    assert_close(found, decoupled_advantages(other, WEIGHTS, 4))


def test_processes_normalize_over_the_whole_batch():
    """Each sees a group; sums of both are asked for in the same order."""
    barrier, shared = Barrier(2), [None, None]

    def share(rank):
        def reduce(x):
            shared[rank] = x
            barrier.wait()
            total = shared[0] + shared[1]
            barrier.wait()
            return total

        return decoupled_advantages(PARTS[4 * rank :][:4], WEIGHTS, 4, reduce=reduce)

    with ThreadPoolExecutor(2) as pool:
        found = torch.cat(list(pool.map(share, range(2))))
    assert_close(found, TRL, rtol=0, atol=1e-5)
