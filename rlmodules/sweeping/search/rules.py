"""Which trials are stopped or paused, and when."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from rlmodules.sweeping.search.study import Direction, Study
from rlmodules.sweeping.search.trials import Trial

HELD_OUT = "held_out"
"""Attribute of a trial: its curves by seed, ``{"0": [[4, 0.31], ...]}``."""
RUNGS = "rungs"
"""Attribute of a study: after how many units which trials went on."""


class Rule(Protocol):
    """Decides on open trials after each look at them."""

    @property
    def first_goal(self) -> int | None:
        """After how many units a new trial's jobs are paused; None: they run to their end."""

    def has_decided(self, study: Study) -> bool:
        """Whether a trial that begins now would come too late."""

    def restore(self, study: Study, trials: Sequence[Trial]) -> None:
        """Bring trials of a search that was interrupted to where they were."""

    def decide(self, study: Study, trials: Sequence[Trial], all_asked: bool) -> list[Trial]:
        """The open ones to stop now; those that go on are given their next goal."""


class RunAll:
    """Every trial runs to its end."""

    @property
    def first_goal(self) -> int | None:
        return None

    def has_decided(self, study: Study) -> bool:
        return False

    def restore(self, study: Study, trials: Sequence[Trial]) -> None:
        pass

    def decide(self, study: Study, trials: Sequence[Trial], all_asked: bool) -> list[Trial]:
        return []


class StopLosers(RunAll):
    """Stops a trial that loses to the best one, seed by seed, at equal progress.

    Each seed is a pair: the trial's latest held-out value of it, and the best trial's after as many
    units. If all n pairs are lost, the one-sided Wilcoxon test gives p = 1 / 2**n: 0.25 of two
    seeds, 0.125 of three, 0.0625 of four; if the smallest of three is won, 0.25. So a threshold
    between 0.125 and 0.25 lets three seeds decide, if all agree, and two never. Optuna's own, 0.1,
    lets four decide and three never. The value before training, which all share, is no pair.

    Args:
        pruner: a ``WilcoxonPruner``.
    """

    def __init__(self, pruner: BasePruner) -> None:
        self.pruner = pruner

    def decide(self, study: Study, trials: Sequence[Trial], all_asked: bool) -> list[Trial]:
        best = best_complete(study)
        if best is None:
            return []
        curves = read_curves(best.user_attrs.get(HELD_OUT, {}))
        return [t for t in trials if t.is_open and not t.same_as and self._loses(study, t, curves)]

    def _loses(self, study: Study, trial: Trial, best: Mapping[int, Mapping[int, float]]) -> bool:
        return loses(self.pruner, study.direction, pairs(trial.curves(study.metric), best))


@dataclass
class Halve:
    """All trials run for ``min_units``, the better half of them twice as long, and so on.

    They are paused, not repeated: those that go on do so from their own checkpoints. The last one,
    or the last ones if the run ends sooner, run to their end.
    """

    min_units: int

    @property
    def first_goal(self) -> int | None:
        return self.min_units

    def has_decided(self, study: Study) -> bool:
        return RUNGS in study.optuna.user_attrs

    def restore(self, study: Study, trials: Sequence[Trial]) -> None:
        rungs = study.optuna.user_attrs.get(RUNGS, [])
        if not rungs:
            return
        for trial in trials:
            if trial.is_open:
                on = trial.number in rungs[-1]["go_on"]
                trial.goal = self._next(rungs[-1], trial) if on else rungs[-1]["units"]

    def decide(self, study: Study, trials: Sequence[Trial], all_asked: bool) -> list[Trial]:
        racing = [trial for trial in trials if trial.is_open and not trial.same_as]
        rungs = study.optuna.user_attrs.get(RUNGS, [])
        if rungs and (late := [t for t in racing if t.number not in rungs[-1]["go_on"]]):
            return late  # a search that was killed had decided, and not told all of them
        goal = racing[0].goal if racing else None
        if not all_asked or goal is None or not all(trial.has_reached for trial in racing):
            return []
        sign = -1 if study.direction == "maximize" else 1
        ranked = sorted(racing, key=lambda t: (sign * value_at(t, study.metric, goal), t.number))
        stay = ranked[: max(1, len(ranked) // 2)]
        rung: dict[str, Any] = {"units": goal, "go_on": sorted(trial.number for trial in stay)}
        study.optuna.set_user_attr(RUNGS, [*rungs, rung])
        for trial in stay:
            trial.goal = self._next(rung, trial)
        return ranked[len(stay) :]

    @staticmethod
    def _next(rung: Mapping[str, Any], trial: Trial) -> int | None:
        goal = int(rung["units"]) * 2
        total = max((i.total or 0 for i in trial.instances), default=0)
        return None if len(rung["go_on"]) == 1 or (total and goal >= total) else goal


def value_at(trial: Trial, metric: str, units: int) -> float:
    """The mean of a trial's seeds after ``units``, or at their end if that comes before.

    Raises:
        ValueError: nothing was evaluated there.
    """
    values = []
    for instance in trial.instances:
        curve = instance.curve(metric)
        at = min(units, instance.done)
        if at not in curve:
            raise ValueError(
                f"{metric} was not evaluated after {instance.unit} {at} of {instance.job.folder},"
                f" where halving compares: it was after {sorted(curve)}: choose algo.eval_every so"
                " that hydra.sweeper.min_units is a multiple of it"
            )
        values.append(curve[at])
    return statistics.fmean(values)


def best_complete(study: Study) -> optuna.trial.FrozenTrial | None:
    """The best trial that ran to its end, of all that are in the study."""
    done = study.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == "maximize" else 1
    return min(done, key=lambda t: (sign * t.values[0], t.number), default=None)


def read_curves(told: Mapping[str, Sequence[tuple[int, float]]]) -> dict[int, dict[int, float]]:
    return {int(seed): dict(map(tuple, points)) for seed, points in told.items()}  # type: ignore[arg-type]


def pairs(
    mine: Mapping[int, Mapping[int, float]], best: Mapping[int, Mapping[int, float]]
) -> dict[int, tuple[float, float]]:
    """By seed: the last value of ``mine`` for which ``best`` has one after as many units."""
    found = {}
    for seed, curve in mine.items():
        shared = [unit for unit in curve if unit > 0 and unit in best.get(seed, {})]
        if shared:
            found[seed] = (curve[max(shared)], best[seed][max(shared)])
    return found


def loses(
    pruner: BasePruner, direction: Direction, pairs: Mapping[int, tuple[float, float]]
) -> bool:
    """Whether ``pruner`` stops a trial with these values, by instance, beside the best one's."""
    if not pairs:
        return False
    mine = {seed: pair[0] for seed, pair in pairs.items()}
    best = {seed: pair[1] for seed, pair in pairs.items()}
    study = optuna.create_study(direction=direction)
    mean = statistics.fmean(best.values())
    study.add_trial(optuna.trial.create_trial(value=mean, intermediate_values=best))
    running = TrialState.RUNNING
    trial = optuna.trial.create_trial(state=running, intermediate_values=mine)
    return pruner.prune(study, trial)
