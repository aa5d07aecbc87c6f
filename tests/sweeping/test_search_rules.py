"""Seeds are instances; halving pauses; several metrics make a front."""

import itertools
import math

import optuna
import pytest
from scipy.stats import wilcoxon
from search_helpers import Killed, Played, plan, run
from sweeping.test_search import killed_is_killed, planted, study_of  # noqa: F401

from rlmodules.sweeping.search.rules import RUNGS, StopLosers, loses, pairs
from rlmodules.sweeping.search.study import experimental

PRUNER = {"_target_": "optuna.pruners.WilcoxonPruner", "p_threshold": 0.2}
THREE = {"seeds": [0, 1, 2], "pruner": PRUNER}
GRID = {"_target_": "optuna.samplers.GridSampler", "seed": 0}
EIGHT = ",".join(f"{10**-e:g}" for e in (1.5, 2, 2.5, 3, 3.5, 4.1, 4.6, 5))


def wilcoxon_pruner(threshold=0.2):
    with experimental():
        return optuna.pruners.WilcoxonPruner(p_threshold=threshold)


def test_three_lost_pairs_decide_and_nothing_less_does():
    """p = 1 / 2**n, by enumeration of the signs, is what the docstring says."""
    for n in (2, 3, 4):
        ranks = range(1, n + 1)
        sums = [
            sum(r for r, won in zip(ranks, signs, strict=True) if won)
            for signs in itertools.product([0, 1], repeat=n)
        ]
        assert sums.count(0) / len(sums) == 0.5**n
        lost = [-float(r) for r in ranks]
        assert wilcoxon(lost, alternative="less").pvalue == pytest.approx(0.5**n)
    pruner = wilcoxon_pruner()
    worse = {seed: (0.1 * seed, 0.1 * seed + 0.5) for seed in range(3)}
    assert loses(pruner, "maximize", worse)
    assert not loses(pruner, "maximize", {s: worse[s] for s in (0, 1)})
    assert not loses(pruner, "maximize", worse | {1: (0.62, 0.6)})  # the smallest of three is won
    assert not loses(pruner, "minimize", worse)
    assert not loses(wilcoxon_pruner(0.1), "maximize", worse)  # Optuna's own threshold
    assert not loses(pruner, "maximize", {})


def test_pairs_are_of_equal_progress_and_never_of_what_was_before_training():
    mine = {0: {0: 0.1, 2: 0.2, 4: 0.3}, 1: {0: 0.1}, 2: {0: 0.1, 3: 0.9}}
    best = {0: {0: 0.1, 2: 0.5, 6: 0.9}, 1: {0: 0.1, 2: 0.4}, 2: {0: 0.1, 2: 0.4}}
    assert pairs(mine, best) == {0: (0.2, 0.5)}


def test_a_setting_that_loses_with_every_seed_is_stopped_on_the_way(tmp_path):
    runner = Played(planted, total=10, slots=3)
    rates = "1e-4,1e-2,1e-4,1e-3"
    found, said = run(
        tmp_path, runner, params={"algo.learning_rate": f"choice({rates[:9]},1e-3)"},
        sampler=GRID, n_trials=3, **THREE,
    )  # fmt: skip
    assert found["best_params"] == {"algo.learning_rate": 1e-4}
    trials = {t.params["algo.learning_rate"]: t for t in study_of(tmp_path).trials}
    assert trials[1e-4].state.name == "COMPLETE"
    mean = sum(planted({"algo.learning_rate": 1e-4, "seed": s}, 10)["val/reward"] for s in range(3))
    assert trials[1e-4].value == pytest.approx(mean / 3)
    assert set(trials[1e-4].user_attrs["values"]) == {"0", "1", "2"}
    assert set(trials[1e-4].user_attrs["folders"].values()) == {
        f"trial={trials[1e-4].number:03d},seed={seed}" for seed in range(3)
    }
    later = [t for t in trials.values() if t.number > trials[1e-4].number]
    for trial in later:  # three lost pairs, at their first evaluation
        assert trial.state.name == "PRUNED"
        spent = [unit for folder, unit in runner.spent if f"trial={trial.number:03d}" in folder]
        assert len(spent) < 3 * 10 / 2
        assert trial.user_attrs["held_out"]["0"][-1][0] >= 1
    assert not later or "is out: stopped at" in said


def test_no_seed_is_enough_to_stop_a_setting_that_wins_with_one_of_three(tmp_path):
    def mixed(options, unit):
        lucky = options["algo.learning_rate"] != 1e-4 and options["seed"] == 1
        return {"val/reward": planted(options, unit)["val/reward"] + 1000 * lucky}

    run(
        tmp_path, Played(mixed, slots=3), params={"algo.learning_rate": "choice(1e-4,1e-3)"},
        sampler=GRID, n_trials=2, **THREE,
    )  # fmt: skip
    assert [t.state.name for t in study_of(tmp_path).trials] == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    ("seeds", "threshold", "decides"),
    [
        (1, 0.9, False),
        (2, 0.2, False),
        (2, 0.3, True),
        (3, 0.2, True),
        (3, 0.1, False),
        (4, 0.1, True),
    ],
)
def test_seeds_that_can_never_decide_stop_nothing_and_that_is_said(
    tmp_path, seeds, threshold, decides
):
    pruner = PRUNER | {"p_threshold": threshold}
    made = plan(seeds=list(range(seeds)), pruner=pruner, n_trials=1)
    assert isinstance(made.rule, StopLosers) == decides
    said = run(tmp_path, Played(planted), plan_=made)[1]
    assert ("no setting is stopped early" in said) != decides


def test_other_pruners_are_refused():
    with pytest.raises(ValueError, match="MedianPruner compares runs at one step"):
        plan(pruner={"_target_": "optuna.pruners.MedianPruner"})


# --------------------------------------------------------------------- halving


HALVING = {
    "params": {"algo.learning_rate": f"choice({EIGHT})"},
    "sampler": GRID,
    "n_trials": 8,
    "min_units": "quarter",
}


def test_halving_spends_half_of_what_running_all_would_and_repeats_nothing(tmp_path):
    runner = Played(planted, total=16)
    made = plan(algo={"num_iterations": 16, "eval_every": 8}, **HALVING)
    found, said = run(tmp_path, runner, plan_=made)
    assert len(runner.spent) == len(set(runner.spent)) == 8 * 4 + 4 * 4 + 2 * 8  # 64 of 128
    assert found["best_params"]["algo.learning_rate"] == pytest.approx(10**-4.1, rel=1e-3)
    assert "all run for 4 units" in said
    study = study_of(tmp_path)
    assert [(r["units"], len(r["go_on"])) for r in study.user_attrs[RUNGS]] == [(4, 4), (8, 2)]
    assert sorted(t.state.name for t in study.trials) == ["COMPLETE"] * 2 + ["PRUNED"] * 6
    told = {at for _, at in runner.started}
    assert told == {4, 8, None}
    assert all("algo.eval_every=4" in o for o in [made.space.fixed])


def test_the_better_half_goes_on_exactly(tmp_path):
    """By enumeration: those that stay are the best of all, by their mean over seeds."""

    def crossing(options, unit):  # who leads early does not in the end
        rate, seed = options["algo.learning_rate"], options["seed"]
        return {"val/kl": math.sin(1e4 * rate * unit) + 0.1 * seed * math.cos(1e3 * rate)}

    made = plan(algo={"num_iterations": 16}, metrics=["val/kl"], seeds=[0, 1], **HALVING)
    run(tmp_path, Played(crossing, total=16, slots=3, metric="val/kl"), plan_=made)
    study = study_of(tmp_path)
    rate = {t.number: t.params["algo.learning_rate"] for t in study.trials}

    def mean(number, unit):
        runs = [{"algo.learning_rate": rate[number], "seed": seed} for seed in (0, 1)]
        return sum(crossing(options, unit)["val/kl"] for options in runs) / 2

    left = set(rate)
    for rung in study.user_attrs[RUNGS]:
        best = sorted(left, key=lambda number: mean(number, rung["units"]))[: len(left) // 2]
        assert rung["go_on"] == sorted(best)
        left = set(best)
    best = min(left, key=lambda number: mean(number, 16))
    assert study.best_trial.number == best


@pytest.mark.parametrize("dies_after", range(1, 13, 2))
def test_halving_that_was_killed_ends_as_if_it_had_not_been(tmp_path, dies_after):
    made = plan(algo={"num_iterations": 8}, **HALVING)
    whole = run(tmp_path / "whole", Played(planted, total=8, slots=1), plan_=made)[0]
    dying = Played(planted, total=8, slots=1, dies_after=dies_after)
    with pytest.raises(Killed):
        run(tmp_path / "killed", dying, plan_=made)
    again = Played(planted, total=8, slots=1)
    assert run(tmp_path / "killed", again, plan_=made)[0] == whole
    spent = dying.spent + again.spent
    assert len(spent) == len(set(spent)) == 8 * 2 + 4 * 2 + 2 * 4
    states = [t.state.name for t in study_of(tmp_path / "killed").trials]
    assert states == [t.state.name for t in study_of(tmp_path / "whole").trials]


def test_halving_killed_between_its_decision_and_its_telling_keeps_the_decision(
    tmp_path, monkeypatch
):
    from rlmodules.sweeping.search.study import Study

    made = plan(algo={"num_iterations": 8}, **HALVING)
    end, told = Study.end, []

    def dies(self, number, state):
        if len(told) == 2:
            raise Killed
        told.append(number)
        end(self, number, state)

    monkeypatch.setattr(Study, "end", dies)
    with pytest.raises(Killed):
        run(tmp_path, dying := Played(planted, total=8, slots=2), plan_=made)
    monkeypatch.setattr(Study, "end", end)
    again = Played(planted, total=8, slots=2)
    run(tmp_path, again, plan_=made)
    assert len(dying.spent + again.spent) == 8 * 2 + 4 * 2 + 2 * 4
    assert [len(r["go_on"]) for r in study_of(tmp_path).user_attrs[RUNGS]] == [4, 2]


def test_paused_trials_wait_in_the_study(tmp_path):
    made = plan(algo={"num_iterations": 8}, **HALVING)
    with pytest.raises(Killed):
        run(tmp_path, Played(planted, total=8, slots=1, dies_after=9), plan_=made)
    states = [t.state.name for t in study_of(tmp_path).trials]
    assert states.count("PRUNED") == 4 and states.count("RUNNING") == 2
    assert states.count("WAITING") == 2 or states.count("RUNNING") == 4


def test_halving_goes_on_without_those_that_fail(tmp_path):
    def some_fail(options, unit):
        if options["algo.learning_rate"] > 5e-3:
            raise RuntimeError("ValueError: the loss is not finite")
        return planted(options, unit)

    made = plan(algo={"num_iterations": 8}, max_failure_rate=1.0, **HALVING)
    found, _ = run(tmp_path, Played(some_fail, total=8), plan_=made)
    assert found["best_params"]["algo.learning_rate"] == pytest.approx(10**-4.1, rel=1e-3)
    late = Played(planted, total=8)
    assert "not tried again" in run(tmp_path, late, plan_=made, retry_failed=True)[1]
    assert not late.started


def test_halving_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match=r"algo\.eval_every=3 evaluates at other times"):
        plan("algo.eval_every=3", algo={"num_iterations": 16, "eval_every": 3}, **HALVING)
    with pytest.raises(ValueError, match=r"optimized_metric=rollout/reward is not of held-out"):
        plan(metrics=["rollout/reward"], **HALVING)
    with pytest.raises(ValueError, match=r"is all of algo\.num_iterations=4"):
        plan(**HALVING | {"min_units": 4})
    with pytest.raises(ValueError, match="set one of them to null"):
        plan(pruner=PRUNER, **HALVING)


# ---------------------------------------------------------------------- pareto


def test_the_front_is_the_one_that_enumeration_gives(tmp_path):
    def traded(options, unit):
        rate = math.log10(options["algo.learning_rate"])
        return {"val/reward": -abs(rate + 3), "val/kl": (rate + 5) ** 2, "val/reward_other": 0.0}

    found, said = run(
        tmp_path, Played(traded), metrics=["val/reward", "val/kl"],
        direction=["maximize", "minimize"],
    )  # fmt: skip
    points = {
        float(f"{t.params['algo.learning_rate']:.4g}"): t.values for t in study_of(tmp_path).trials
    }
    assert len(points) == 20
    front = {
        rate: list(mine)
        for rate, mine in points.items()
        if not any(
            other[0] >= mine[0] and other[1] <= mine[1] and other != mine
            for other in points.values()
        )
    }
    assert {s["params"]["algo.learning_rate"]: s["values"] for s in found["solutions"]} == front
    assert 1 < len(front) < 20
    assert f"On the front: {len(front)}" in said


def test_several_metrics_are_neither_pruned_nor_halved():
    with pytest.raises(ValueError, match="with several nothing can be pruned"):
        plan(metrics=["val/reward", "val/kl"], **THREE)
    with pytest.raises(ValueError, match="a direction for each"):
        plan(metrics=["val/reward", "val/kl"], direction="maximize")
