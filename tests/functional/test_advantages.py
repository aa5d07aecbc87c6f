"""GAE, masked statistics, whitening and explained variance, against hand-worked numbers."""

import math
import threading

import pytest
import torch
from torch.testing import assert_close

from rlmodules.functional.advantages import explained_variance, gae, masked_mean, masked_var, whiten

EXACT = {"rtol": 1e-5, "atol": 1e-5}


def left_aligned_mask(*lengths: int, width: int) -> torch.Tensor:
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def run_on_ranks(function, *shards):
    """Calls ``function(*shard, reduce)`` in one thread a rank, where ``reduce`` sums over ranks."""
    barrier, inbox, results = threading.Barrier(len(shards), timeout=10), {}, {}

    def rank(index: int) -> None:
        def reduce(local: torch.Tensor) -> torch.Tensor:
            inbox[index] = local
            barrier.wait()  # every rank has written
            total = torch.stack([inbox[other] for other in range(len(shards))]).sum(0)
            barrier.wait()  # every rank has read
            return total

        results[index] = function(*shards[index], reduce)

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(shards))]


# --- masked statistics ---


def test_masked_mean_counts_only_selected_elements():
    x = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    mask = left_aligned_mask(2, 1, width=3)
    # Per element (1 + 2 + 6) / 3 = 3; a mean of row means would be (1.5 + 6) / 2 = 3.75.
    assert_close(masked_mean(x, mask), torch.tensor(3.0), **EXACT)


def test_masked_var_is_the_population_variance():
    x = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    mask = left_aligned_mask(2, 1, width=3)
    # mean 3: (4 + 1 + 9) / 3 = 14/3 (the sample variance would be 14/2 = 7).
    assert_close(masked_var(x, mask), torch.tensor(14 / 3), **EXACT)


def test_statistics_of_an_empty_mask_are_zero_not_nan():
    x, nothing = torch.full((2, 3), 7.0), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_mean(x, nothing).item() == 0.0
    assert masked_var(x, nothing).item() == 0.0
    assert whiten(x, nothing).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_statistics_ignore_non_finite_values_under_the_mask(poison):
    x, clean = torch.tensor([[1.0, 2.0, poison]]), torch.tensor([[1.0, 2.0, 0.0]])
    mask = left_aligned_mask(2, width=3)
    assert_close(masked_mean(x, mask), torch.tensor(1.5), **EXACT)
    assert_close(masked_var(x, mask), torch.tensor(0.25), **EXACT)
    assert_close(whiten(x, mask), torch.tensor([[-1.0, 1.0, 0.0]]), **EXACT)
    returns = torch.tensor([[1.0, 3.0, poison]])
    # Residuals (0, 1) have variance 1/4, returns (1, 3) have variance 1: 1 - 1/4.
    assert_close(explained_variance(x, returns, mask), torch.tensor(0.75), **EXACT)
    assert_close(explained_variance(clean, returns, mask), torch.tensor(0.75), **EXACT)


def test_masked_mean_sends_no_gradient_into_padding():
    x = torch.tensor([[1.0, 2.0, math.nan]], requires_grad=True)
    masked_mean(x, left_aligned_mask(2, width=3)).backward()
    assert x.grad.tolist() == [[0.5, 0.5, 0.0]]


def test_masked_mean_and_variance_over_two_ranks_are_those_of_the_whole_batch():
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask = left_aligned_mask(3, 1, width=3)
    shards = [(x[:1], mask[:1]), (x[1:], mask[1:])]
    means = run_on_ranks(lambda x, m, reduce: masked_mean(x, m, reduce=reduce), *shards)
    variances = run_on_ranks(lambda x, m, reduce: masked_var(x, m, reduce=reduce), *shards)
    # Four elements 1, 2, 3, 10: mean 4 (not the mean of rank means, 6), variance
    # (9 + 4 + 1 + 36) / 4 = 12.5.
    assert [m.item() for m in means] == pytest.approx([4.0, 4.0])
    assert [v.item() for v in variances] == pytest.approx([12.5, 12.5])


# --- whitening ---


def test_whitening_matches_numbers_worked_by_hand():
    x = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    # mean 3, std sqrt(14/3) = 2.160247: -2/2.160247, -1/2.160247, 3/2.160247.
    expected = torch.tensor([[-0.925820, -0.462910, 0.0], [1.388730, 0.0, 0.0]])
    assert_close(whiten(x, left_aligned_mask(2, 1, width=3)), expected, **EXACT)


def test_whitened_values_have_mean_zero_and_variance_one_over_the_mask():
    torch.manual_seed(0)
    mask = left_aligned_mask(5, 1, 3, width=6)
    white = whiten(50 + 7 * torch.randn(3, 6), mask)
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-5)
    assert white[mask].var(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert white[~mask].abs().max().item() == 0.0


def test_whitening_a_constant_gives_zeros():
    x = torch.full((2, 4), 3.0)
    assert_close(whiten(x, left_aligned_mask(4, 2, width=4)), torch.zeros(2, 4), **EXACT)


def test_whitening_over_two_ranks_is_whitening_of_the_whole_batch():
    torch.manual_seed(1)
    x = torch.randn(5, 4) + torch.arange(5)[:, None]
    mask = left_aligned_mask(4, 1, 2, 4, 3, width=4)
    whole = whiten(x, mask)
    shards = [(x[:2], mask[:2]), (x[2:], mask[2:])]
    parts = run_on_ranks(lambda x, m, reduce: whiten(x, m, reduce=reduce), *shards)
    assert_close(torch.cat(parts), whole, **EXACT)
    alone = torch.cat([whiten(*shard) for shard in shards])
    assert (alone - whole).abs().max() > 0.1  # the shards differ, so reducing matters


# --- explained variance ---


def test_explained_variance_matches_numbers_worked_by_hand():
    returns, values = torch.tensor([[1.0, 2.0, 3.0, 6.0]]), torch.tensor([[1.0, 2.0, 2.0, 5.0]])
    # Residuals (0, 0, 1, 1): variance 1/4. Returns: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5.
    # 1 - 0.25 / 3.5 = 0.928571; dividing by Var[values] = 2.25 would give 0.888889.
    everything = torch.ones(1, 4, dtype=torch.bool)
    ev = explained_variance(values, returns, everything)
    assert ev.item() == pytest.approx(0.928571, abs=1e-5)


@pytest.mark.parametrize(
    ("slope", "offset", "expected"),
    [(1.0, 0.0, 1.0), (1.0, 5.0, 1.0), (0.0, 4.0, 0.0), (-1.0, 0.0, -3.0), (0.5, 0.0, 0.75)],
)
def test_explained_variance_of_a_linear_critic_is_one_minus_squared_slope_error(
    slope, offset, expected
):
    # V = a R + b leaves the residual (1 - a) R - b, so 1 - (1 - a)^2 whatever b is.
    returns = torch.tensor([[1.0, 2.0, 4.0], [8.0, 77.0, 77.0]])
    mask = left_aligned_mask(3, 1, width=3)
    ev = explained_variance(slope * returns + offset, returns, mask)
    assert ev.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("constant", [0.0, 2.0, 0.1, 1 / 3, -7.3])
def test_explained_variance_is_nan_where_the_returns_do_not_vary(constant):
    values, mask = torch.tensor([[0.3, 0.1, 0.7, 9.0]]), left_aligned_mask(3, width=4)
    assert math.isnan(explained_variance(values, torch.full((1, 4), constant), mask).item())


def test_explained_variance_over_two_ranks_is_that_of_the_whole_batch():
    torch.manual_seed(2)
    returns = torch.randn(4, 3) + torch.arange(4)[:, None]
    mask = left_aligned_mask(3, 1, 2, 3, width=3)
    values = returns + 0.7 * torch.randn(4, 3)
    whole = explained_variance(values, returns, mask).item()
    shards = [(values[:1], returns[:1], mask[:1]), (values[1:], returns[1:], mask[1:])]
    ranks = run_on_ranks(
        lambda v, r, m, reduce: explained_variance(v, r, m, reduce=reduce), *shards
    )
    assert [rank.item() for rank in ranks] == pytest.approx([whole, whole], abs=1e-5)


# --- generalized advantage estimation ---


def test_gae_matches_numbers_worked_by_hand():
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 0.25]])
    everything = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, everything, gamma=0.9, lam=0.8)
    # delta_2 = 2 + 0          - 0.25 =  1.75      A_2 =  1.75
    # delta_1 = 0 + 0.9 * 0.25 - 1    = -0.775     A_1 = -0.775 + 0.72 * 1.75  = 0.485
    # delta_0 = 1 + 0.9 * 1    - 0.5  =  1.4       A_0 =  1.4   + 0.72 * 0.485 = 1.7492
    assert_close(advantages, torch.tensor([[1.7492, 0.485, 1.75]]), **EXACT)
    assert_close(returns, torch.tensor([[2.2492, 1.485, 2.0]]), **EXACT)


def textbook_advantage(rewards: list, values: list, t: int, gamma: float, lam: float) -> float:
    """Eq. 16 as it is defined: the (1 - lam) lam^(n-1) weighted mean of n-step advantages.

    After the end every n-step advantage is the same, so the last one carries the rest: lam^(N-1).
    """
    steps, total = len(rewards) - t, 0.0
    for n in range(1, steps + 1):
        advantage = sum(gamma**k * rewards[t + k] for k in range(n)) - values[t]
        if n < steps:
            advantage += gamma**n * values[t + n]
        total += lam ** (n - 1) * (1.0 if n == steps else 1 - lam) * advantage
    return total


@pytest.mark.parametrize("poison", [5.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.7), (0.99, 0.0), (1.0, 0.95), (0.8, 1.0)])
def test_gae_is_the_textbook_sum_on_ragged_episodes(gamma, lam, poison):
    torch.manual_seed(3)
    lengths, width = (7, 1, 4, 0), 9
    mask = left_aligned_mask(*lengths, width=width)
    rewards, values = torch.randn(4, width), torch.randn(4, width)
    expected = torch.zeros(4, width)
    for b, length in enumerate(lengths):
        r, v = rewards[b, :length].tolist(), values[b, :length].tolist()
        for t in range(length):
            expected[b, t] = textbook_advantage(r, v, t, gamma, lam)
    expected_returns = torch.where(mask, expected + values, 0.0)
    rewards[~mask] = poison
    values[~mask] = poison
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    assert_close(advantages, expected, **EXACT)
    assert_close(returns, expected_returns, **EXACT)


def test_a_terminal_reward_reaches_earlier_actions_only_through_gamma_and_lambda():
    rewards, mask = torch.tensor([[0.0, 0.0, 1.0, 0.0]]), left_aligned_mask(3, width=4)
    nothing_known = torch.zeros(1, 4)
    # With V = 0, A_t = (gamma lam)^(T - 1 - t) r.
    for gamma, lam, expected in [
        (1.0, 0.0, [0.0, 0.0, 1.0, 0.0]),
        (1.0, 0.5, [0.25, 0.5, 1.0, 0.0]),
        (0.5, 0.5, [0.0625, 0.25, 1.0, 0.0]),
        (1.0, 1.0, [1.0, 1.0, 1.0, 0.0]),
    ]:
        advantages, _ = gae(rewards, nothing_known, mask, gamma=gamma, lam=lam)
        assert advantages.tolist() == [expected]


def test_nothing_is_bootstrapped_after_the_last_action():
    # The padding holds V = 9, which must not be mistaken for the value of a next state.
    rewards, values = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 9.0]])
    advantages, _ = gae(rewards, values, left_aligned_mask(2, width=3), gamma=1.0, lam=0.0)
    assert advantages.tolist() == [[1.0, -2.0, 0.0]]  # V_1 - V_0, then 0 - V_1


def test_a_perfect_critic_leaves_no_advantage():
    # V_t = gamma^(T - 1 - t) r is exact for one reward r = 8 at the end.
    rewards, values = torch.tensor([[0.0, 0.0, 8.0]]), torch.tensor([[2.0, 4.0, 8.0]])
    everything = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, everything, gamma=0.5, lam=0.3)
    assert advantages.tolist() == [[0.0, 0.0, 0.0]]
    assert_close(returns, values, **EXACT)


def test_gae_does_not_depend_on_padding_amount_or_batch_order():
    torch.manual_seed(4)
    mask = left_aligned_mask(5, 2, 4, width=5)
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.7)

    def pad(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, torch.full((3, 4), 3).to(x.dtype)], 1)

    padded_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], 1)
    padded = gae(pad(rewards), pad(values), padded_mask, gamma=0.9, lam=0.7)
    for long, short in zip(padded, (advantages, returns), strict=True):
        assert torch.equal(long[:, :5], short)
        assert long[:, 5:].abs().max() == 0
    order = [2, 0, 1]
    shuffled = gae(rewards[order], values[order], mask[order], gamma=0.9, lam=0.7)
    assert torch.equal(shuffled[0], advantages[order])
    assert torch.equal(shuffled[1], returns[order])


def test_gae_leaves_its_inputs_as_they_were():
    rewards, values = torch.ones(1, 3), torch.ones(1, 3)
    gae(rewards, values, left_aligned_mask(2, width=3), gamma=0.9, lam=0.7)
    assert torch.equal(rewards, torch.ones(1, 3)) and torch.equal(values, torch.ones(1, 3))
