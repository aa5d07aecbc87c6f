"""Courses of made-up runs: healthy ones with noise, and what spoils them."""

import random

from rlmodules.metrics.course import Course

PPO_SETTINGS = {"algo.kl_target": 0.2}


def noisy(rng, value, share):
    """``value`` times something log-normal around 1."""
    return value * rng.lognormvariate(0, share)


def healthy_ppo(seed=0, iterations=12):
    """As the default run: reward 0.2 to 0.7, KL to a little above its target of 0.2."""
    rng, rows = random.Random(seed), []
    for i in range(iterations):
        done = (i + 1) / iterations
        row = {
            "iteration": i + 1.0,
            "rollout/reward": 0.2 + 0.45 * done + rng.gauss(0, 0.05),
            "rollout/reward_std": noisy(rng, 0.4, 0.1),
            "rollout/response_length": 23 + rng.gauss(0, 0.3),
            "rollout/eos_fraction": max(0.0, 0.08 + rng.gauss(0, 0.03)),
            "rollout/kl": 0.27 * done**1.5 + rng.gauss(0, 0.01),
            "rollout/sampler_kl": noisy(rng, 3e-4, 0.2),
            "rollout/explained_variance": min(-0.5 + 0.8 * done, 0.3) + rng.gauss(0, 0.1),
            "train/loss": rng.gauss(0, 0.05),
            "train/value_loss": noisy(rng, 0.05, 0.2),
            "train/grad_norm": noisy(rng, 2.0 if i else 40.0, 0.4),
        }
        if i:  # one iteration of warm-up
            row |= {
                "train/policy_loss": rng.gauss(0, 0.02),
                "train/entropy": noisy(rng, 2.6 - 0.8 * done, 0.05),
                "train/clip_fraction": noisy(rng, 0.06, 0.3),
                "train/approx_kl": noisy(rng, 0.005, 0.4),
                "train/ratio": 1 + rng.gauss(0, 0.005),
            }
        if (i + 1) % (iterations // 2) == 0:
            row |= held_out_text(rng, done)
        rows.append(row)
    return Course(rows, [(0, held_out_text(rng, 0.0))], PPO_SETTINGS)


def held_out_text(rng, done):
    return {
        "val/reward": 0.25 + 0.45 * done + rng.gauss(0, 0.03),
        "val/distinct_bigrams": 0.89 - 0.06 * done + rng.gauss(0, 0.01),
        "val/kl": max(0.25 * done, 0.0),
        "val/response_length": 23.0,
    }


def healthy_grpo(seed=0, iterations=16):
    """As the default run: sums, 30% to 75% right, in ever more uniform answers."""
    rng, rows = random.Random(seed), []
    for i in range(iterations):
        done = (i + 1) / iterations
        row = {
            "iteration": i + 1.0,
            "rollout/reward": 0.35 + 0.4 * done + rng.gauss(0, 0.04),
            "rollout/reward_std": noisy(rng, 0.45, 0.05),
            "rollout/response_length": 7 - 2 * done + rng.gauss(0, 0.3),
            "rollout/eos_fraction": min(1.0, 0.7 + 0.3 * done),
            "rollout/entropy": noisy(rng, 1.0 - 0.6 * done, 0.1),
            "rollout/equal_groups": min(1.0, max(0.0, 0.25 + 0.2 * done + rng.gauss(0, 0.07))),
            "rollout/resampled_groups": 0.0,
            "train/loss": rng.gauss(0, 0.02),
            "train/grad_norm": noisy(rng, 1.5, 0.4),
            "train/clip_fraction": 0.0,
            "train/approx_kl": 0.0,
            "train/ratio": 1.0,
        }
        if (i + 1) % (iterations // 2) == 0:
            row |= held_out_answers(done)
        rows.append(row)
    return Course(rows, [(0, held_out_answers(0.0))])


def held_out_answers(done):
    return {
        "val/reward": 0.35 + 0.45 * done,
        "val/pass@1": 0.3 + 0.45 * done,
        "val/distinct_bigrams": 0.4 - 0.3 * done,
    }


def healthy_dpo(seed=0, steps=30):
    rng, rows = random.Random(seed), []
    for i in range(steps):
        done = (i + 1) / steps
        rows.append(
            {
                "step": i + 1.0,
                "train/loss": 0.69 - 0.25 * done + rng.gauss(0, 0.06),
                "train/accuracy": 0.5 + 0.3 * done + rng.gauss(0, 0.1),
                "train/margin": 0.8 * done + rng.gauss(0, 0.2),
                "train/chosen_drift": 0.5 * done + rng.gauss(0, 0.6),
                "train/logps_chosen": -80 + rng.gauss(0, 10),
                "train/grad_norm": noisy(rng, 30.0, 0.4),
            }
        )
    ends = [(at, {"val/chosen_drift": 0.4 * at / steps, "val/loss": 0.69}) for at in (0, steps)]
    return Course(rows, ends, {"algo.reference_free": False})


HEALTHY = {"ppo": healthy_ppo, "grpo": healthy_grpo, "dpo": healthy_dpo}


def spoiled(course, name, values):
    """The course with other values of a metric, where it has one.

    Args:
        values: a function of how far the run is, from 0 to 1, and of the value that was.
    """
    total = len(course.rows)
    rows = [dict(row) for row in course.rows]
    for i, row in enumerate(rows):
        if name in row:
            row[name] = values((i + 1) / total, row[name])
    held_out = [(at, dict(row)) for at, row in course.held_out]
    for at, row in held_out:
        if name in row:
            row[name] = values(at / total, row[name])
    return Course(rows, held_out, course.settings)
