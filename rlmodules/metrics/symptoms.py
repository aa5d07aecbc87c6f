"""What an unhealthy run looks like in its metrics: one function a symptom.

Each takes how a run went and says what it saw, or None. All are careful in the same way: what
counts is the median of several values (``Course.window``), a trend is believed below p = 0.01, and
a run too short to tell is healthy.
"""

import math
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from rlmodules.metrics.course import Course, Point, Row, began, trend

LONGER, MORE_REPETITIVE = 1.5, 0.75
"""What a mean length, and the share of distinct bigrams, are multiplied by, that is too much."""
KL_TARGETS, KL_AT_MOST, KL_AT_LEAST = 3.0, 1.0, -0.05
"""Multiples of the target, and nats a token whatever the target; an estimate below 0 is noise."""
ENTROPY_LEFT, ENTROPY_AT_LEAST = 0.1, 0.1
"""Share of the entropy at first, and nats a token, that both must be gone below."""
WORSE_THAN_NOTHING = {8: -0.2, 30: 0.0}
"""After so many iterations: the share of variance that a critic is to explain at least."""
EQUAL_GROUPS = 0.8
CLIPPED, MOVED = 0.3, 0.1
"""Share of tokens that are clipped; KL(old || new) in nats a token."""
SPIKE, BEFORE_SPIKE = 10.0, 5
"""Times the median of the values before it, of which there are to be so many."""
CHOSEN_LOST = 1.0
"""Nats a response, as in the warning of ``DPO``."""
CUT_OFF, ENDED_ONCE = 0.05, 0.3
"""Share of responses that end by themselves: at most, where it once was at least."""
DISAGREE = 0.02
"""Nats a token between sampler and trainer: a hundred times what is healthy."""
SURE = 0.01
"""The p-value below which a trend is believed."""


class Seen(NamedTuple):
    """What tells a symptom.

    Attributes:
        said: a sentence with the numbers.
        values: metric -> its value at first and at last.
        began: after how many iterations or steps.
    """

    said: str
    values: dict[str, tuple[float, float]]
    began: int


def _rises(course: Course, name: str) -> bool:
    """Whether a metric rises for sure, with how many values it has."""
    tau, p = trend(course.points(name))
    return tau > 0 and p < SURE


def rewarded_length(course: Course) -> Seen | None:
    length, reward = course.ends("rollout/response_length"), course.ends("rollout/reward")
    if length is None or reward is None or length[1] < LONGER * length[0] or _is_taught(course):
        return None
    if not all(_rises(course, f"rollout/{name}") for name in ("response_length", "reward")):
        return None
    points = course.points("rollout/response_length")
    return Seen(
        f"responses grew from {length[0]:.0f} to {length[1]:.0f} tokens, and the reward with them"
        f" from {reward[0]:.3g} to {reward[1]:.3g}",
        {"rollout/response_length": length, "rollout/reward": reward},
        began(points, lambda tokens: tokens > LONGER * length[0]),
    )


def rewarded_repetition(course: Course) -> Seen | None:
    """Not where answers are checked: right answers to alike questions may well be alike."""
    distinct, reward = (course.points(f"val/{name}") for name in ("distinct_bigrams", "reward"))
    if len(distinct) < 2 or len(reward) < 2 or course.points("val/pass@1") or _is_taught(course):
        return None
    first, last = distinct[0][1], distinct[-1][1]
    if last >= MORE_REPETITIVE * first or reward[-1][1] <= reward[0][1]:
        return None
    return Seen(
        f"the share of distinct bigrams fell from {first:.2f} to {last:.2f} on held-out prompts,"
        f" while the reward rose from {reward[0][1]:.3g} to {reward[-1][1]:.3g}",
        {"val/distinct_bigrams": (first, last), "val/reward": (reward[0][1], reward[-1][1])},
        began(distinct, lambda share: share < MORE_REPETITIVE * first),
    )


def _is_taught(course: Course) -> bool:
    """Whether a teacher says what is right, so that rewards are a measure alone."""
    return bool(course.points("rollout/on_policy"))


def _kl(course: Course, is_ill: Callable[[float], bool], said: str) -> Seen | None:
    last, points = course.last("rollout/kl"), course.points("rollout/kl")
    if last is None or not is_ill(last):
        return None
    values = {"rollout/kl": (points[0][1], last)}
    return Seen(said.format(last=last), values, began(points, is_ill))


def high_kl(course: Course) -> Seen | None:
    target = course.settings.get("algo.kl_target")
    limit = KL_AT_MOST if target is None else max(KL_TARGETS * float(target), 0.02)
    against = f"at most {limit:g} is healthy" + (
        "" if target is None else f" with algo.kl_target={target:g}"
    )
    told = f"the KL to the reference is {{last:.3g}} nats a token, and {against}"
    return _kl(course, lambda kl: kl > limit, told)


def negative_kl(course: Course) -> Seen | None:
    told = "the estimated KL to the reference is {last:.3g} nats a token, and no KL is negative"
    return _kl(course, lambda kl: kl < KL_AT_LEAST, told)


def collapsed_entropy(course: Course) -> Seen | None:
    for name in ("train/entropy", "rollout/entropy"):
        ends = course.ends(name)
        if ends is None or _is_taught(course):  # a teacher may be as sure of itself
            continue
        limit = min(ENTROPY_LEFT * ends[0], ENTROPY_AT_LEAST)
        if ends[1] < limit:
            return Seen(
                f"the policy's entropy fell from {ends[0]:.3g} to {ends[1]:.2g} nats a token",
                {name: ends},
                began(course.points(name), lambda entropy, limit=limit: entropy < limit),
            )
    return None


def blind_critic(course: Course) -> Seen | None:
    name = "rollout/explained_variance"
    points, ends = course.points(name), course.ends(name)
    least = [share for by, share in WORSE_THAN_NOTHING.items() if len(points) >= by]
    if not least or ends is None:
        return None
    third = median(value for _, value in points[-(len(points) // 3) :])
    if third > least[-1] or _rises(course, name):
        return None
    return Seen(
        f"after {points[-1][0]} iterations the critic explains {third:.2f} of the returns'"
        " variance, and it does not rise",
        {name: ends},
        began(points, lambda share: share <= 0),
    )


def equal_groups(course: Course) -> Seen | None:
    name = "rollout/equal_groups"
    last, points = course.last(name), course.points(name)
    if last is None or last < EQUAL_GROUPS:
        return None
    return Seen(
        f"in {last:.0%} of the groups all responses are rewarded alike",
        {name: (points[0][1], last)},
        began(points, lambda share: share >= EQUAL_GROUPS),
    )


def equal_rewards(course: Course) -> Seen | None:
    """For algorithms without groups."""
    name = "rollout/reward_std"
    last, points = course.last(name), course.points(name)
    if last is None or course.points("rollout/equal_groups") or _is_taught(course):
        return None
    is_none = lambda deviation: deviation < 1e-6  # noqa: E731
    if not is_none(last):
        return None
    return Seen(
        "all episodes of an iteration are rewarded alike",
        {name: (points[0][1], last)},
        began(points, is_none),
    )


def large_steps(course: Course) -> Seen | None:
    """GSPO clips far more, by whole responses: its range is a thousandth."""
    of_responses = course.settings.get("algo.importance_sampling_level") == "sequence"
    limits = {
        "train/clip_fraction": math.inf if of_responses else CLIPPED,
        "train/approx_kl": MOVED,
    }
    for name, limit in limits.items():
        last, points = course.last(name), course.points(name)
        if last is not None and last > limit:
            what = (
                f"{last:.0%} of the tokens are clipped"
                if name == "train/clip_fraction"
                else f"an iteration moves the policy by {last:.2g} nats a token"
            )
            since = began(points, lambda value, limit=limit: value > limit)
            return Seen(what, {name: (points[0][1], last)}, since)
    return None


def gradient_spikes(course: Course) -> Seen | None:
    rows = [row for row in course.rows if not _warms_up(row)]
    points = Course(rows, settings=course.settings).points("train/grad_norm")
    found: list[tuple[float, Point]] = []
    for i in range(BEFORE_SPIKE, len(points)):
        usual = median(value for _, value in points[max(i - 10, 0) : i])
        if points[i][1] > SPIKE * usual > 0:
            found.append((usual, points[i]))
    if not found:
        return None
    usual, (at, height) = max(found, key=lambda spike: spike[1][1] / spike[0])
    times = f" ({len(found)} times in all)" if len(found) > 1 else ""
    return Seen(
        f"the gradient's norm jumped from {usual:.2g} to {height:.3g} at {course.unit} {at}{times}",
        {"train/grad_norm": (usual, height)},
        found[0][1][0],
    )


def _warms_up(row: Row) -> bool:
    """Whether only the critic learned in an iteration: its gradients are of another size."""
    return "train/value_loss" in row and "train/policy_loss" not in row


def lost_chosen(course: Course) -> Seen | None:
    if course.settings.get("algo.reference_free"):
        return None  # the drift is no drift then, but the log-probability itself
    held_out, training = course.points("val/chosen_drift"), course.ends("train/chosen_drift")
    if len(held_out) >= 2:
        name, values = "val/chosen_drift", (held_out[0][1], held_out[-1][1])
    elif training is not None:
        name, values = "train/chosen_drift", training
    else:
        return None
    lost = values[0] - values[1]
    if lost <= CHOSEN_LOST:
        return None
    return Seen(
        f"chosen responses became less likely by {lost:.1f} nats each",
        {name: values},
        began(course.points(name), lambda drift: drift < values[0] - CHOSEN_LOST),
    )


def engines_apart(course: Course) -> Seen | None:
    name = "rollout/sampler_kl"
    last, points = course.last(name), course.points(name)
    if last is None or abs(last) <= DISAGREE:
        return None
    return Seen(
        f"sampler and trainer are {abs(last):.2g} nats a token apart on the same tokens",
        {name: (points[0][1], last)},
        began(points, lambda kl: abs(kl) > DISAGREE),
    )


def lost_loss(course: Course) -> Seen | None:
    """A loss that is not finite is left out of what is logged."""
    whole = [
        i for i, row in enumerate(course.rows) if math.isfinite(row.get("train/loss", math.nan))
    ]
    missing = [i for i in range(len(course.rows)) if i not in set(whole)]
    if not whole or not missing:
        return None
    first, last = (course.rows[whole[i]]["train/loss"] for i in (0, -1))
    return Seen(
        f"the loss of {len(missing)} of {len(course.rows)} {course.unit}s is not finite, or there"
        " was nothing to learn from",
        {"train/loss": (first, last)},
        course.number(missing[0]),
    )


def cut_off(course: Course) -> Seen | None:
    """Where texts are continued to the limit from the first iteration on, that is meant."""
    name = "rollout/eos_fraction"
    ends, points = course.ends(name), course.points(name)
    if ends is None or ends[0] < ENDED_ONCE or ends[1] > CUT_OFF:
        return None
    return Seen(
        f"{1 - ends[1]:.0%} of the responses are cut off at the limit; at first {1 - ends[0]:.0%}",
        {name: ends},
        began(points, lambda share: share <= CUT_OFF),
    )
