"""Group advantages and the GRPO losses: hand-worked numbers, invariances."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from grpo_loss_helpers import batch_of, loss_and_gradient
from torch import tensor
from torch.testing import assert_close

from rlmodules.functional import (
    BASELINES,
    GRPO_LOSSES,
    LEVELS,
    SCALES,
    group_advantages,
)

EXACT = {"rtol": 1e-5, "atol": 1e-6}
every_loss = pytest.mark.parametrize("loss_type", GRPO_LOSSES)
every_level = pytest.mark.parametrize("level", LEVELS)


def one_token(ratio, advantage, **options):
    """(loss, gradient) of a single action, whose old log-probability was -1."""
    batch = batch_of([[-1.0 + math.log(ratio)]], [[-1.0]], [advantage], [[1]])
    loss, gradient, metrics = loss_and_gradient(batch, **options)
    return loss.item(), gradient.item(), metrics


def ragged(seed=0, rows=4):
    """Episodes of 5, 1, 3 and 2 actions, with ratios on both sides of the clip range."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5)[None, :] < tensor([5, 1, 3, 2, 4, 1, 5, 2])[:rows, None]
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "logprobs_BA": draw(rows, 5) - 2,
        "old_logprobs_BA": draw(rows, 5) - 2,
        "advantages_BA": draw(rows, 1).expand(rows, 5),
        "mask_BA": mask,
    }


# --------------------------------------------------------------- one token by hand


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [  # min(ratio * A, clip(ratio, 1 - 0.2, 1 + 0.4) * A)
        (1.3, 2.0, 2.6, False),  # within the higher upper bound
        (1.5, 2.0, 2.8, True),  # min(3.0, 2.8)
        (0.7, -1.0, -0.8, True),  # min(-0.7, -0.8)
        (0.7, 2.0, 1.4, False),  # a good action became unlikely: undo, whatever the bound
        (1.5, -2.0, -3.0, False),  # a bad action became likely: undo
    ],
)
def test_a_tokens_loss_is_clipped_below_at_epsilon_and_above_at_epsilon_high(
    ratio, advantage, objective, clipped
):
    loss, gradient, metrics = one_token(ratio, advantage, epsilon=0.2, epsilon_high=0.4)
    assert loss == pytest.approx(-objective, rel=1e-5)
    # d ratio / d logprob = ratio.
    assert gradient == pytest.approx(0.0 if clipped else -ratio * advantage, rel=1e-5)
    assert metrics["clip_fraction"].item() == float(clipped)
    assert metrics["ratio"].item() == pytest.approx(ratio, rel=1e-5)


def test_without_epsilon_high_both_bounds_are_epsilon():
    assert one_token(1.5, 1.0, epsilon=0.3)[0] == pytest.approx(-1.3, rel=1e-5)
    assert one_token(0.5, -1.0, epsilon=0.3)[0] == pytest.approx(0.7, rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"), [(1.5, 2.0, 1.5), (4.0, 2.0, 3.0), (4.0, -2.0, 3.0)]
)
def test_cispo_weights_the_log_probability_by_the_ratio_up_to_epsilon_high(
    ratio, advantage, weight
):
    """-min(w, 3) A logprob with the weight held fixed: clipped tokens keep their gradient."""
    loss, gradient, metrics = one_token(ratio, advantage, loss_type="cispo", epsilon_high=3.0)
    assert loss == pytest.approx(-weight * advantage * (-1.0 + math.log(ratio)), rel=1e-5)
    assert gradient == pytest.approx(-weight * advantage, rel=1e-5)
    assert metrics["clip_fraction"].item() == float(ratio > 3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"), [(4.0, -2.0, 3.0), (2.0, -2.0, 2.0), (4.0, 2.0, 1.2)]
)
def test_delta_bounds_what_a_bad_response_can_move(ratio, advantage, weight):
    """Good ones are clipped at 1.2 before; at a bound there is no gradient."""
    loss, gradient, _ = one_token(ratio, advantage, delta=3.0)
    assert loss == pytest.approx(-weight * advantage, rel=1e-5)
    assert gradient == pytest.approx(-weight * advantage if ratio == 2.0 else 0.0, rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "t"), [(1.0, 2.0, 3.0), (1.5, 2.0, 3.0), (1.5, -2.0, 0.5)]
)
def test_sapos_slope_fades_with_the_distance_from_the_old_policy(ratio, advantage, t):
    """Of sigmoid(t (w - 1)) 4 / t by w it is 4 s (1 - s): 1 on policy, whatever t."""
    s = 1 / (1 + math.exp(-t * (ratio - 1)))
    loss, gradient, metrics = one_token(
        ratio, advantage, loss_type="sapo", sapo_temperature_pos=3.0, sapo_temperature_neg=0.5
    )
    assert loss == pytest.approx(-4 / t * s * advantage, rel=1e-5)
    assert gradient == pytest.approx(-4 * s * (1 - s) * ratio * advantage, rel=1e-4)
    assert metrics["clip_fraction"].item() == 0.0


def test_the_kl_term_is_k3_of_policy_against_reference_times_beta():
    """d = ln p - ln ref = ln 2: k3 = 1/2 - 1 + ln 2 = 0.193147, its gradient 1 - 1/2."""
    batch = batch_of([[math.log(0.5)]], [[math.log(0.5)]], [0.0], [[1]])
    reference = tensor([[math.log(0.25)]])
    loss, gradient, metrics = loss_and_gradient(batch, ref_logprobs_BA=reference, beta=0.3)
    assert loss.item() == pytest.approx(0.3 * 0.193147, rel=1e-5)
    assert gradient.item() == pytest.approx(0.3 * 0.5, rel=1e-5)
    assert metrics["kl"].item() == pytest.approx(0.193147, rel=1e-5)


def test_kl_is_reported_of_real_tokens_alone_and_only_with_a_reference():
    batch = batch_of([[math.log(0.5), -7.0]], [[math.log(0.5), -3.0]], [1.0], [[1, 0]])
    assert "kl" not in loss_and_gradient(batch)[2]
    metrics = loss_and_gradient(batch, ref_logprobs_BA=tensor([[math.log(0.25), -1.0]]))[2]
    assert metrics["kl"].item() == pytest.approx(0.193147, rel=1e-5)


# ------------------------------------------------------------- averages by hand


# Per-token losses -w A: row 0 is -(1.1, 0.9, 1.0) * 2, row 1 is -(1.2) * -3.
LADDER = batch_of(
    [[math.log(1.1), math.log(0.9), 0.0], [math.log(1.2), 9.0, 9.0]],
    [[0.0, 0.0, 0.0], [0.0, 7.0, 7.0]],
    [2.0, -3.0],
    [[1, 1, 1], [1, 0, 0]],
)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", (-6.0 / 3 + 3.6) / 2),
        ("bnpo", (-6.0 + 3.6) / 4),
        ("dapo", (-6.0 + 3.6) / 7),
        ("dr_grpo", (-6.0 + 3.6) / (2 * 5)),
        ("luspo", (-6.0 + 3.6) / 2),
        # -w A ln w of each token, over the step's 7.
        ("cispo", (-2 * (1.1 * math.log(1.1) + 0.9 * math.log(0.9)) + 3.6 * math.log(1.2)) / 7),
    ],
)
def test_each_loss_type_averages_tokens_its_own_way(loss_type, expected):
    loss, _, metrics = loss_and_gradient(LADDER, loss_type, num_actions=7, max_new_tokens=5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert metrics["ratio"].item() == pytest.approx((1.1 + 0.9 + 1.0 + 1.2) / 4, rel=1e-5)
    k3 = [w - 1 - math.log(w) for w in (1.1, 0.9, 1.0, 1.2)]
    assert metrics["approx_kl"].item() == pytest.approx(sum(k3) / 4, rel=1e-4)


def test_at_the_level_of_sequences_every_token_has_the_geometric_mean_of_the_ratios():
    """(2 * 0.5 * 2)^(1/3) = 2^(1/3) = 1.26 in a row of three; gradients are w A / 3 each."""
    old = [[0.0, 0.0, 0.0]]
    batch = batch_of([[math.log(2), -math.log(2), math.log(2)]], old, [1.0], [[1, 1, 1]])
    weight = 2 ** (1 / 3)
    loss, gradient, metrics = loss_and_gradient(batch, level="sequence", epsilon_high=0.5)
    assert loss.item() == pytest.approx(-3 * weight, rel=1e-5)
    assert_close(gradient, torch.full((1, 3), -weight), **EXACT)  # 3 tokens x w / 3
    assert metrics["ratio"].item() == pytest.approx(weight, rel=1e-5)
    loss, gradient, metrics = loss_and_gradient(batch, level="sequence")  # clipped at 1.2
    assert loss.item() == pytest.approx(-3.6, rel=1e-5)
    assert gradient.abs().max() == 0 and metrics["clip_fraction"].item() == 1.0


# -------------------------------------------------------------------- invariances


@every_loss
@every_level
def test_on_policy_a_step_makes_good_responses_likelier_and_bad_ones_less(loss_type, level):
    batch = ragged()
    batch["old_logprobs_BA"] = batch["logprobs_BA"]
    _, gradient, metrics = loss_and_gradient(batch, loss_type, level=level)
    mask = batch["mask_BA"]
    assert torch.equal((-gradient[mask]).sign(), batch["advantages_BA"][mask].sign())
    assert gradient[~mask].abs().max() == 0
    assert metrics["ratio"].item() == 1.0
    assert metrics["approx_kl"].item() == 0.0 and metrics["clip_fraction"].item() == 0.0


@every_loss
@every_level
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_whatever_stands_under_the_mask_reaches_neither_value_nor_gradient(
    loss_type, level, poison
):
    clean = ragged()
    reference = clean["old_logprobs_BA"] - 0.3
    mask = clean["mask_BA"]
    dirty = {k: v if k == "mask_BA" else v.masked_fill(~mask, poison) for k, v in clean.items()}
    options = {"loss_type": loss_type, "level": level, "beta": 0.1}
    plain = loss_and_gradient(clean, ref_logprobs_BA=reference, **options)
    poisoned = loss_and_gradient(
        dirty, ref_logprobs_BA=reference.masked_fill(~mask, poison), **options
    )
    assert_close(poisoned, plain, rtol=0, atol=0)


@every_loss
@every_level
def test_more_padding_and_another_order_change_nothing(loss_type, level):
    batch = ragged()
    plain, gradient, _ = loss_and_gradient(batch, loss_type, level=level)
    wide = {k: torch.nn.functional.pad(v, (0, 3)) for k, v in batch.items()}
    assert_close(loss_and_gradient(wide, loss_type, level=level)[0], plain, **EXACT)
    order = [2, 0, 3, 1]
    mixed = loss_and_gradient({k: v[order] for k, v in batch.items()}, loss_type, level=level)
    assert_close(mixed[0], plain, **EXACT)
    assert_close(mixed[1], gradient[order], **EXACT)


@every_loss
@every_level
def test_a_minibatch_without_any_action_is_0_with_a_graph(loss_type, level):
    batch = ragged()
    batch["mask_BA"] = torch.zeros_like(batch["mask_BA"])
    options = {"ref_logprobs_BA": batch["old_logprobs_BA"], "beta": 0.1, "num_actions": 0}
    loss, gradient, metrics = loss_and_gradient(batch, loss_type, level=level, **options)
    assert loss.item() == 0.0 and gradient.abs().max() == 0.0
    assert {k: v.item() for k, v in metrics.items()} == dict.fromkeys(metrics, 0.0)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"])
@pytest.mark.parametrize("kept", [5, 1], ids=["full", "fewer actions than pieces"])
@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_a_step_is_the_same_however_it_is_accumulated(loss_type, kept, pieces):
    """Mean over pieces of the losses, each with its share of the action count, as in training."""
    batch = ragged(rows=8)
    batch["mask_BA"] = batch["mask_BA"] & (torch.arange(5) < kept)
    if kept == 1:
        batch["mask_BA"][2:] = False
    count = batch["mask_BA"].sum().item()
    whole, gradient, _ = loss_and_gradient(batch, loss_type, num_actions=count)
    size = 8 // pieces
    parts = [
        loss_and_gradient(
            {k: v[i : i + size] for k, v in batch.items()}, loss_type, num_actions=count / pieces
        )
        for i in range(0, 8, size)
    ]
    assert_close(sum(part[0] for part in parts) / pieces, whole, **EXACT)
    assert_close(torch.cat([part[1] for part in parts]) / pieces, gradient, **EXACT)


@every_loss
@every_level
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("log_ratio", [200.0, -200.0])
def test_a_log_ratio_of_200_never_gives_nan(loss_type, level, advantage, log_ratio):
    """e^200 is infinite in float32, and 0 x inf would be NaN in value or gradient."""
    batch = batch_of([[log_ratio - 1, -1.0]], [[-1.0, -1.0]], [advantage], [[1, 1]])
    loss, gradient, _ = loss_and_gradient(batch, loss_type, level=level)
    assert not loss.isnan() and not gradient.isnan().any()
    # What pulls it back is as strong as can be; all else is finite.
    if not (log_ratio > 0 and advantage < 0 and loss_type != "cispo"):
        assert loss.isfinite() and gradient.isfinite().all()
    if advantage == 0:
        assert loss.item() == 0 and gradient.abs().max() == 0
    assert (-gradient.sign() * advantage >= 0).all()


def test_an_unknown_loss_type_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"loss_type='ppo'.*dr_grpo"):
        loss_and_gradient(LADDER, "ppo")


# --------------------------------------------------------------- group advantages

REWARDS = [1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 4.0, 4.0]
CENTRED = {
    "group": [-2.0, -1.0, 0.0, 3.0, -2.0, -2.0, 2.0, 2.0],  # means 3 and 2
    "leave_one_out": [-8 / 3, -4 / 3, 0.0, 4.0, -8 / 3, -8 / 3, 8 / 3, 8 / 3],
    "batch": [-1.5, -0.5, 0.5, 3.5, -2.5, -2.5, 1.5, 1.5],  # mean 2.5
}
DEVIATIONS = {  # sqrt(14/3), sqrt(16/3); sqrt(32/7)
    "group": [2.160247] * 4 + [2.309401] * 4,
    "batch": [2.138090] * 8,
}


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_advantages_match_numbers_worked_by_hand(baseline, scale):
    ours = group_advantages(tensor(REWARDS), ones(8), 4, baseline=baseline, scale=scale)
    expected = tensor(CENTRED[baseline])
    if scale != "none":
        expected = expected / (tensor(DEVIATIONS[scale]) + 1e-4)
    assert_close(ours, expected, **EXACT)


def ones(n):
    return torch.ones(n, dtype=torch.bool)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("reward", [0.0, 1e6, math.nan, math.inf])
def test_failed_episodes_have_no_say_and_no_advantage(baseline, scale, reward):
    """The first three of the group alone: a group of 3 without the failed one."""
    counts = tensor([True, True, True, False])
    options = {"baseline": baseline, "scale": scale}
    ours = group_advantages(tensor([1.0, 2.0, 6.0, reward]), counts, 4, **options)
    without = group_advantages(tensor([1.0, 2.0, 6.0]), ones(3), 3, **options)
    assert_close(ours, tensor([*without.tolist(), 0.0]), **EXACT)


def test_leave_one_out_compares_with_the_mean_of_the_others_that_count():
    rewards, counts = tensor([1.0, 2.0, 99.0, 6.0]), tensor([True, True, False, True])
    ours = group_advantages(rewards, counts, 4, baseline="leave_one_out", scale="none")
    assert ours.tolist() == pytest.approx([1 - 4, 2 - 3.5, 0, 6 - 1.5])


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("survivors", [0, 1])
def test_a_group_with_nothing_left_to_compare_has_no_advantage(baseline, scale, survivors):
    counts = tensor([True, True, True] + [i < survivors for i in range(3)])
    rewards = tensor([0.0, 1.0, 5.0, 0.7, 3.0, 2.0])
    ours = group_advantages(rewards, counts, 3, baseline=baseline, scale=scale)
    assert ours[3:].tolist() == [0.0, 0.0, 0.0]
    assert ours[:3].isfinite().all() and ours[2] > 0


@pytest.mark.parametrize("reward", [0.1, 0.7, 1 / 3, -123.456])
@pytest.mark.parametrize("size", [2, 6, 7, 8, 12])
def test_a_group_of_equal_rewards_has_exactly_no_advantage(reward, size):
    """Rounding of the mean, over a deviation of rounding alone, would be a large advantage."""
    rewards = torch.cat([torch.full((size,), reward), torch.arange(float(size))])
    for baseline, scale in itertools.product(("group", "leave_one_out"), SCALES):
        ours = group_advantages(rewards, ones(2 * size), size, baseline=baseline, scale=scale)
        assert ours[:size].abs().max() == 0, (baseline, scale)
        assert ours[-1] > 0


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
def test_two_processes_get_the_advantages_of_one(baseline, scale):
    rewards, counts = tensor(REWARDS), tensor([True] * 3 + [False] + [True] * 4)
    options = {"baseline": baseline, "scale": scale}
    meeting, sums = Barrier(2), [None, None]

    def rank(i):
        def reduce(x):
            sums[i] = x
            meeting.wait(5)
            total = sums[0] + sums[1]
            meeting.wait(5)
            return total

        mine = slice(4 * i, 4 * i + 4)
        return group_advantages(rewards[mine], counts[mine], 4, reduce=reduce, **options)

    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(rank, range(2)))
    assert_close(torch.cat(halves), group_advantages(rewards, counts, 4, **options), **EXACT)


def test_wrong_names_and_sizes_are_refused():
    with pytest.raises(ValueError, match="baseline='median'"):
        group_advantages(tensor(REWARDS), ones(8), 4, baseline="median")
    with pytest.raises(ValueError, match="scale='std'"):
        group_advantages(tensor(REWARDS), ones(8), 4, scale="std")
    with pytest.raises(ValueError, match=r"8 episodes .* groups of 3"):
        group_advantages(tensor(REWARDS), ones(8), 3)
