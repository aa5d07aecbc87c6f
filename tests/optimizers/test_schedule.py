"""The learning rate of online algorithms: its course, what is logged, and where a run goes on."""

from dataclasses import replace

import pytest
from helpers import assert_same
from resume_helpers import SaveAt, fit, settings

from rlmodules.optimizers.schedule import learning_rate_factor

STEPS = {"ppo": 4, "grpo": 4}
"""Optimizer steps of an iteration: two minibatches, twice over."""


def history(checkpoint):
    return checkpoint["callbacks"]["RunReport"]["history"]


def rates(checkpoint):
    return [row["train/learning_rate"] for row in history(checkpoint)]


def scheduled(name, schedule="linear", **changes):
    return settings(name, lr_scheduler_type=schedule, **changes)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("schedule", "told", "warmup"),
    [
        ("linear", {"warmup_steps": 3}, 3),
        ("cosine", {"warmup_ratio": 0.2}, 3),  # of 12, rounded up
        ("constant_with_warmup", {"warmup_steps": 6}, 6),
    ],
)
def test_an_iteration_logs_the_rate_of_its_last_step(name, schedule, told, warmup, tmp_path):
    checkpoint = fit(name, tmp_path, scheduled(name, schedule, **told), 3)
    last = [learning_rate_factor(step, warmup, 12, schedule) for step in (3, 7, 11)]
    assert rates(checkpoint) == pytest.approx([1e-2 * factor for factor in last])


def test_all_groups_follow_the_schedule_from_their_own_peaks(tmp_path):
    c = scheduled("ppo", value_learning_rate=0.1)
    groups = fit("ppo", tmp_path, c, 2)["optimizer_states"][0]["param_groups"]
    assert [group["lr"] for group in groups] == [0.0, 0.0]  # of the step after the last
    assert [group["initial_lr"] for group in groups] == [1e-2, 0.1]


def test_accumulated_minibatches_are_one_step(tmp_path):
    c = scheduled("grpo", gradient_accumulation_steps=2)
    assert rates(fit("grpo", tmp_path, c, 2)) == pytest.approx([1e-2 * 3 / 4, 1e-2 * 1 / 4])


def test_an_early_stop_leaves_the_schedule_in_its_place(tmp_path):
    """Steps that are left out count: the run ends at the rate that it was planned to end at."""
    stopped = fit("ppo", tmp_path, scheduled("ppo", early_stop_kl=1e-9), 3)
    assert history(stopped)[1]["train/stopped_early"] == 1.0
    assert rates(stopped) == pytest.approx([1e-2 * (12 - step) / 12 for step in (3, 7, 11)])


@pytest.mark.parametrize("stop", [{}, {"early_stop_kl": 1e-9}], ids=["all steps", "stopped early"])
def test_a_run_goes_on_in_its_schedule_bit_by_bit(stop, tmp_path):
    c = scheduled("ppo", "cosine", warmup_steps=2, **stop)
    places = [(1, 1), (1, 3), (2, 0)]
    callbacks = [SaveAt(tmp_path / f"{at}.ckpt", *at) for at in places]
    straight = fit("ppo", tmp_path / "straight", c, 3, callbacks=callbacks)
    for at in places:
        resumed = fit("ppo", tmp_path / str(at), c, 3, ckpt_path=tmp_path / f"{at}.ckpt")
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert_same(straight[part], resumed[part], part)
        assert rates(straight) == rates(resumed)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_longer_run_follows_its_schedule_over_the_new_length(schedule, tmp_path, capsys):
    shorter = scheduled("ppo", schedule, num_iterations=2)
    fit("ppo", tmp_path / "first", shorter, 2)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    longer = replace(shorter, num_iterations=4)
    resumed = fit("ppo", tmp_path / "second", longer, 4, ckpt_path=last)
    said = "algo.num_iterations: 2 -> 4" in capsys.readouterr().out
    assert said == (schedule == "linear")
    of = lambda step, total: 1e-2 * learning_rate_factor(step, 0, total, schedule)  # noqa: E731
    assert rates(resumed) == pytest.approx([of(3, 8), of(7, 8), of(11, 16), of(15, 16)])
