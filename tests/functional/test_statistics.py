"""Shares of solved problems against textbook numbers and enumeration."""

import itertools

import pytest

from rlmodules.functional.statistics import mcnemar_p, pass_at_k, wilson_interval


def test_wilson_intervals_of_textbook_proportions():
    assert wilson_interval(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)
    assert wilson_interval(10, 10) == pytest.approx((0.722, 1.0), abs=1e-3)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_draws_of_k_attempts_that_hold_a_right_one(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        attempts = [True] * correct + [False] * (n - correct)
        draws = [any(draw) for draw in itertools.combinations(attempts, k)]
        assert pass_at_k(n, correct, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_of_fewer_attempts_is_refused(k):
    with pytest.raises(ValueError, match=rf"pass@{k} needs at least {k} attempts, there are 3"):
        pass_at_k(3, 1, k)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 32),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (2, 10, 2 * (1 + 12 + 66) / 2**12),
        (8, 1, 2 * (1 + 9) / 2**9),
    ],
)
def test_mcnemars_p_value_counts_the_problems_that_one_of_the_two_solves_alone(gained, lost, p):
    pairs = [(False, True)] * gained + [(True, False)] * lost + [(True, True)] * 30
    before = {i: b for i, (b, _) in enumerate(pairs)} | {900: True}  # not asked the second time
    after = {i: a for i, (_, a) in enumerate(pairs)} | {901: False}
    assert mcnemar_p(before, after) == pytest.approx(p, abs=1e-12)


def test_of_200_problems_30_more_solved_is_significant_and_30_against_20_is_not():
    assert mcnemar_p(dict.fromkeys(range(30), False), dict.fromkeys(range(30), True)) < 1e-8
    before = dict.fromkeys(range(30), False) | dict.fromkeys(range(30, 50), True)
    after = {i: not solved for i, solved in before.items()}
    assert mcnemar_p(before, after) == pytest.approx(0.2026, abs=1e-4)
