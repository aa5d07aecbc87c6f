"""The health check finds every kind of failure, and none in a healthy run."""

import json
import math

import pytest
from metrics_helpers import HEALTHY, PPO_SETTINGS, healthy_dpo, healthy_grpo, healthy_ppo, spoiled

from rlmodules.metrics.course import Course, began
from rlmodules.metrics.health import CERTAIN, READ, SYMPTOMS, check
from rlmodules.metrics.table import find


def names(course):
    return [finding.name for finding in check(course)]


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_run_has_no_symptom(kind):
    """Whatever its noise: 200 runs of usual length, 20 of a hundred iterations."""
    for seed in range(200):
        assert names(HEALTHY[kind](seed)) == [], seed
    for seed in range(20):
        assert names(HEALTHY[kind](seed, 100)) == [], seed


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_run_too_short_to_tell_has_no_symptom(kind):
    for length in (1, 2, 3):
        course = HEALTHY[kind](0, 30)
        assert names(Course(course.rows[:length], course.held_out[:1], course.settings)) == []
    assert names(Course([])) == []
    gaps = Course([{"train/loss": 1.0}, {"train/loss": math.nan}, {}, {"train/loss": 3.0}])
    assert gaps.points("train/loss") == [(1, 1.0), (4, 3.0)]


ILL = [
    # symptom, the healthy run that gets it, metric -> what it becomes as the run goes on, since
    ("high_kl", healthy_ppo, {"rollout/kl": lambda t, v: 2.0 * t}, 4),
    ("negative_kl", healthy_ppo, {"rollout/kl": lambda t, v: -0.2}, 1),
    ("rewarded_length", healthy_ppo, {"rollout/response_length": lambda t, v: 10 + 40 * t}, 5),
    ("rewarded_length", healthy_grpo, {"rollout/response_length": lambda t, v: 100 + 400 * t}, 6),
    ("rewarded_repetition", healthy_ppo, {"val/distinct_bigrams": lambda t, v: 0.9 - 0.6 * t}, 6),
    ("collapsed_entropy", healthy_ppo, {"train/entropy": lambda t, v: 2.5 * math.exp(-8 * t)}, 7),
    ("collapsed_entropy", healthy_grpo, {"rollout/entropy": lambda t, v: math.exp(-6 * t)}, 9),
    ("blind_critic", healthy_ppo, {"rollout/explained_variance": lambda t, v: -0.5 - t}, 1),
    ("equal_groups", healthy_grpo, {"rollout/equal_groups": lambda t, v: 0.5 + t / 2}, 10),
    ("equal_rewards", healthy_ppo, {"rollout/reward_std": lambda t, v: 0.0 if t > 0.5 else v}, 7),
    ("large_steps", healthy_ppo, {"train/clip_fraction": lambda t, v: 0.5}, 2),
    ("large_steps", healthy_grpo, {"train/approx_kl": lambda t, v: 0.3}, 1),
    ("gradient_spikes", healthy_ppo, {"train/grad_norm": lambda t, v: 90 if t == 0.75 else v}, 9),
    ("gradient_spikes", healthy_dpo, {"train/grad_norm": lambda t, v: 999 if t == 0.5 else v}, 15),
    ("lost_chosen", healthy_dpo, {"val/chosen_drift": lambda t, v: -20 * t}, 30),
    ("cut_off", healthy_grpo, {"rollout/eos_fraction": lambda t, v: max(0.9 - 2 * t, 0.0)}, 7),
    ("engines_apart", healthy_ppo, {"rollout/sampler_kl": lambda t, v: 0.09}, 1),
    ("lost_loss", healthy_ppo, {"train/loss": lambda t, v: v if t < 0.9 else math.nan}, 11),
    ("lost_loss", healthy_dpo, {"train/loss": lambda t, v: v if t < 0.9 else math.inf}, 27),
]


@pytest.mark.parametrize(("symptom", "healthy", "spoils", "since"), ILL)
def test_a_symptom_is_found_and_no_other(symptom, healthy, spoils, since):
    for seed in range(10):
        course = healthy(seed)
        for metric, values in spoils.items():
            course = spoiled(course, metric, values)
        (finding,) = check(course)
        assert finding.name == symptom
        assert finding.began == since
        assert set(spoils) <= set(finding.evidence)
        assert all(map(math.isfinite, sum(finding.evidence.values(), ())))
        assert f"since {finding.unit} {since}" in str(finding) and finding.remedy in str(finding)


def kept(row):
    return {name: value for name, value in row.items() if name in (*READ, "iteration", "step")}


@pytest.mark.parametrize(("symptom", "healthy", "spoils", "since"), ILL)
def test_a_symptom_is_found_in_what_the_guard_keeps(symptom, healthy, spoils, since):
    course = healthy(1)
    for metric, values in spoils.items():
        course = spoiled(course, metric, values)
    held_out = [(at, kept(row)) for at, row in course.held_out]
    (finding,) = check(Course(list(map(kept, course.rows)), held_out, course.settings))
    assert (finding.name, finding.began) == (symptom, since)


def test_every_symptom_is_tried_and_said_whole():
    assert {symptom.name for symptom in SYMPTOMS} == {row[0] for row in ILL}
    assert set(CERTAIN) < {symptom.name for symptom in SYMPTOMS}
    for symptom in SYMPTOMS:
        assert symptom.name == symptom.seen.__name__
        for text in (symptom.rule, symptom.meaning, symptom.remedy):
            assert text.endswith(".")
    for _, _, spoils, _ in ILL:
        assert all(find(metric) for metric in spoils)


def test_one_odd_iteration_is_no_symptom():
    """But for a spike, which is one, and a loss that is not there."""
    patient = ("lost_loss", "gradient_spikes", "rewarded_length", "rewarded_repetition")
    for symptom, healthy, spoils, _ in ILL:
        if symptom in patient or symptom == "lost_chosen":
            continue
        course = healthy(1)
        for metric, values in spoils.items():
            odd = lambda t, v, values=values: values(1.0, v) if t == 0.5 else v  # noqa: E731
            course = spoiled(course, metric, odd)
        assert names(course) == [], symptom


def test_what_is_meant_is_no_symptom():
    # a text is continued to the limit from the start on
    assert names(spoiled(healthy_ppo(), "rollout/eos_fraction", lambda t, v: 0.0)) == []
    # right answers to alike questions are alike
    assert healthy_grpo().points("val/distinct_bigrams")[-1][1] < 0.2
    # GSPO's clip range is a thousandth
    clipped = spoiled(healthy_grpo(), "train/clip_fraction", lambda t, v: 0.5)
    gspo = Course(clipped.rows, settings={"algo.importance_sampling_level": "sequence"})
    assert names(clipped) == ["large_steps"] and names(gspo) == []
    # a KL of next to nothing is estimated as less than nothing at times
    still = spoiled(healthy_ppo(), "rollout/kl", lambda t, v: -0.02)
    assert names(still) == []
    # returns that nothing foretells leave a critic at 0; after 30 iterations that is worth a word
    noise = [0.05, -0.2, -0.05, -0.1]
    for iterations, found in ((12, []), (40, ["blind_critic"])):
        course = healthy_ppo(0, iterations)
        flat = lambda t, v, n=iterations: noise[round(t * n) % 4] - 0.02  # noqa: E731
        assert names(spoiled(course, "rollout/explained_variance", flat)) == found
    # gradients of a critic that warms up alone are of another size
    rows = [{"train/value_loss": 1.0, "train/grad_norm": 0.01, "train/loss": 0.5}] * 6
    rows += [row | {"train/policy_loss": 0.1, "train/grad_norm": 1.0} for row in rows]
    assert names(Course(rows)) == []
    # without a reference a drift is a log-probability
    free = spoiled(healthy_dpo(), "val/chosen_drift", lambda t, v: -50.0 * (1 + t))
    assert names(free) == ["lost_chosen"]
    assert names(Course(free.rows, free.held_out, {"algo.reference_free": True})) == []
    # a longer text that is not paid for
    longer = spoiled(healthy_ppo(), "rollout/response_length", lambda t, v: 10 + 40 * t)
    assert names(spoiled(longer, "rollout/reward", lambda t, v: 0.5 - 0.1 * t)) == []


def test_the_target_says_what_kl_is_too_high():
    course = spoiled(healthy_ppo(), "rollout/kl", lambda t, v: 0.75)
    assert names(course) == ["high_kl"]
    assert names(Course(course.rows, settings={"algo.kl_target": 0.5})) == []
    assert names(Course(course.rows)) == []  # unknown: only a nat is too much
    (finding,) = check(course)
    assert "0.75 nats a token" in finding.said and "algo.kl_target=0.2" in finding.said


def test_since_when_passes_over_a_single_odd_value():
    ill = lambda value: value > 1  # noqa: E731
    assert began([(1, 0), (2, 2), (3, 0), (4, 2), (5, 2)], ill) == 2
    assert began([(1, 2), (2, 0), (3, 0), (4, 2), (5, 2)], ill) == 4


def test_a_report_is_read_as_it_is_written(tmp_path):
    """Evaluations of pairs stand apart or at both ends; those of episodes stand in the rows."""
    course = spoiled(healthy_dpo(), "val/chosen_drift", lambda t, v: -20 * t)
    ends = {"before": course.held_out[0][1], "after": course.held_out[1][1]}
    report = json.loads(json.dumps(ends | {"history": course.rows}))
    assert names(Course.of_report(report)) == ["lost_chosen"]
    apart = [row | {"step": float(at)} for at, row in course.held_out]
    read = Course.of_report(report | {"evaluations": apart})
    assert read.points("val/chosen_drift") == [(0, 0.0), (30, -20.0)]
    ppo = healthy_ppo()
    report = {"before": ppo.held_out[0][1], "after": {}, "history": ppo.rows}
    read = Course.of_report(report, PPO_SETTINGS)
    assert read.points("val/reward") == ppo.points("val/reward") and len(read.points("val/kl")) == 3


SMALL = ["model=tiny", "trainer.precision=32-true", "logger=none", "callbacks.export=null"]
SMALL += ["callbacks.best=null", "callbacks.last=null"]
EPISODES = [*SMALL, "algo.num_iterations=4", "algo.batch_size=4", "algo.mini_batch_size=2"]
EPISODES += ["algo.max_new_tokens=4", "data.eval_size=2", "algo.gradient_accumulation_steps=1"]

PAIRS = [*SMALL, "data.path=pairs.jsonl", "data.eval_size=4", "algo.num_epochs=1"]
PAIRS += ["algo.batch_size=2", "algo.gradient_accumulation_steps=1"]


@pytest.mark.parametrize(
    ("run", "found"),
    [
        (["algo=ppo", "reward=length", *EPISODES], []),
        (["algo=ppo", "reward=function", "reward.path=same:same", *EPISODES], ["equal_rewards"]),
        (["algo=grpo", "env=math", "algo.num_generations=2", *EPISODES], ["equal_groups"]),
        (
            ["algo=dpo", "algo.loss_type=apo_down", "algo.learning_rate=1e-2", *PAIRS],
            ["lost_chosen"],
        ),
    ],
)
def test_real_runs_are_judged_rightly(tmp_path, command, run, found):
    (tmp_path / "same.py").write_text("def same(completions):\n    return [1.0] * len(completions)")
    rows = [{"prompt": f"{i}?", "chosen": f" Yes {i}", "rejected": f" No {i}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command(*run)
    (report,) = tmp_path.glob("outputs/*/*/report.json")
    assert [f.name for f in check(Course.of_report(json.loads(report.read_text())))] == found
