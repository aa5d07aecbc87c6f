"""The study of a search, on disk: whoever repeats the search goes on with it."""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from rlmodules.sweeping.search.journal import open_journal

JOURNAL = "study.log"
"""The study, in the sweep's folder, for ``optuna-dashboard``."""
ASKED_FOR = "asked_for"
"""Attribute of a study: what it is of."""
SWEEP = "sweep"
"""Attribute of a trial: the folder of the sweep that runs it."""
RETRY_OF = "retry_of"
"""Attribute of a trial: the failed one that it stands for, whose folders it has."""
Sampler = optuna.samplers.BaseSampler
Direction = Literal["minimize", "maximize"]


@contextmanager
def experimental() -> Iterator[None]:
    """Without Optuna's remarks that something is new in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def open_storage(storage: str | None, folder: Path) -> BaseStorage:
    """The journal of ``folder``, or a database.

    Raises:
        ValueError: ``storage`` is no URL, or its database cannot be opened.
    """
    if storage is None:
        return open_journal(folder / JOURNAL)
    if "://" not in storage:
        raise ValueError(
            f"hydra.sweeper.storage={storage!r} must be null (the file {JOURNAL} in the sweep's"
            " folder) or the URL of a database, sqlite:///study.db for example"
        )
    try:
        return optuna.storages.get_storage(storage)
    except Exception as error:  # SQLAlchemy's, and ImportErrors of drivers
        raise ValueError(
            f"hydra.sweeper.storage={storage!r} cannot be opened:"
            f" {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error


@dataclass(frozen=True)
class Asked:
    """What is searched, all of which two runs of one search have to agree on.

    Attributes:
        space: parameter -> Optuna's description of it.
        goals: metric -> direction.
        seeds: of each trial.
        fixed: what all jobs are told.
        how: what else decides which trials there are, by option.
    """

    space: Mapping[str, str]
    goals: Mapping[str, Direction]
    seeds: Sequence[int]
    fixed: Sequence[str]
    how: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        plain = {
            "space": dict(self.space),
            "goals": list(map(list, self.goals.items())),
            "seeds": list(self.seeds),
            "fixed": sorted(self.fixed),
            "how": dict(self.how),
        }
        return json.loads(json.dumps(plain))  # as a storage gives it back

    def refuse_other(self, before: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: ``before``, of the study, differs; the first difference is named.
        """
        now, where = self.plain(), "and this study was begun with"
        remedy = "repeat it as it was, or take another hydra.sweep.dir"
        for kind in ("space", "how"):
            for name in sorted({*now[kind], *before[kind]}):
                mine, other = now[kind].get(name), before[kind].get(name)
                if mine != other:
                    said = f"{as_written(mine)} {where} {as_written(other)}"
                    raise ValueError(f"{name}: {said}: {remedy}")
        names = {"goals": "the metric and its direction", "seeds": "hydra.sweeper.seeds"}
        for kind, name in names.items():
            if now[kind] != before[kind]:
                raise ValueError(f"{name}: {now[kind]} {where} {before[kind]}: {remedy}")
        for fixed in sorted({*now["fixed"]} ^ {*before["fixed"]}):
            how = "without" if fixed in now["fixed"] else "with"
            raise ValueError(f"{fixed}: this study was begun {how} it: {remedy}")


def as_written(value: Any) -> str:
    """A parameter's description as a person would write it."""
    if value is None:
        return "not searched"
    try:
        found = json.loads(value)
        given = found["attributes"]
    except (TypeError, ValueError, KeyError):
        return str(value)
    if "choices" in given:
        return f"choice({', '.join(map(str, given['choices']))})"
    text = f"interval({given['low']}, {given['high']})"
    if given.get("step") not in (None, 1):
        text = f"{text} in steps of {given['step']}"
    return f"tag(log, {text})" if given.get("log") else text


class Endless(optuna.Study):
    """A study whose sampler cannot end it: once it has no more to propose, as a grid has not, what
    it proposes again is not run again."""

    def stop(self) -> None:
        pass


class Study:
    """The trials of one sweep in an Optuna study.

    Args:
        sampler: makes a sampler for the trial of this number. Asking each trial of a sampler with
            a seed of its own makes a search that was interrupted propose what it would have
            proposed; one seed for all would repeat its first proposals.
        sweep: the sweep's folder; a shared study has trials of others.
        shared: whether it can have.

    Raises:
        ValueError: the study is one of something else.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        asked: Asked,
        distributions: Mapping[str, BaseDistribution],
        sampler: Callable[[int], Sampler],
        sweep: Path,
        shared: bool = False,
    ) -> None:
        self.storage, self.asked, self.sampler = storage, asked, sampler
        self.distributions, self.sweep, self.shared = dict(distributions), str(sweep), shared
        known = name in {study.study_name for study in storage.get_all_studies()}
        if known:
            self._compare(name)
        directions = list(asked.goals.values())
        optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        self.optuna = Endless(study_name=name, storage=storage)
        if ASKED_FOR not in self.optuna.user_attrs:
            with experimental():
                self.optuna.set_metric_names(list(asked.goals))
            self.optuna.set_user_attr(ASKED_FOR, asked.plain())

    def _compare(self, name: str) -> None:
        study_id = self.storage.get_study_id_from_name(name)
        before = self.storage.get_study_user_attrs(study_id).get(ASKED_FOR)
        if before is not None:
            self.asked.refuse_other(before)
        elif self.storage.get_all_trials(study_id, deepcopy=False):
            raise ValueError(
                f"hydra.sweeper.study_name={name} is a study that was made elsewhere, and it does"
                " not say of what: take another name"
            )

    @property
    def direction(self) -> Direction:
        """Of the first metric."""
        return next(iter(self.asked.goals.values()))

    @property
    def metric(self) -> str:
        """The first."""
        return next(iter(self.asked.goals))

    def trials(self) -> list[FrozenTrial]:
        """Those of this sweep, without what was cut off while it was asked for."""
        trials = self.optuna.get_trials(deepcopy=False)
        if self.shared:
            trials = [trial for trial in trials if trial.user_attrs.get(SWEEP) == self.sweep]
        return [trial for trial in trials if set(trial.params) == set(self.distributions)]

    def forget_half_asked(self) -> None:
        """End the trials that a killed search was in the middle of asking for."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            mine = not self.shared or trial.user_attrs.get(SWEEP) == self.sweep
            if mine and set(trial.params) != set(self.distributions):
                self.optuna.tell(trial.number, state=TrialState.FAIL)

    def retry(self, failed: FrozenTrial) -> tuple[int, dict[str, Any]]:
        """A new trial of a failed one's setting (Optuna never opens one again)."""
        attributes = {RETRY_OF: failed.number, SWEEP: self.sweep}
        self.optuna.enqueue_trial(failed.params, user_attrs=attributes)
        return self.propose()

    def propose(self) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and its setting."""
        self.optuna.sampler = self.sampler(len(self.trials()))
        trial = self.optuna.ask(fixed_distributions=self.distributions)
        if (owner := trial.user_attrs.get(SWEEP, self.sweep)) != self.sweep:
            self.wait(trial.number)
            raise ValueError(
                f"hydra.sweeper.study_name={self.optuna.study_name} has paused trials of {owner},"
                " which only that sweep can go on with: take another name"
            )
        trial.set_user_attr(SWEEP, self.sweep)
        return trial.number, dict(trial.params)

    def note(self, number: int, **attributes: Any) -> None:
        """Keep what is worth knowing about a trial."""
        trial_id = self._id(number)
        known = self.storage.get_trial(trial_id).user_attrs
        for name, value in attributes.items():
            if known.get(name) != value:
                self.storage.set_trial_user_attr(trial_id, name, value)

    def report(self, number: int, unit: int, value: float) -> None:
        """What a trial had after ``unit`` units."""
        trial_id = self._id(number)
        if unit not in self.storage.get_trial(trial_id).intermediate_values:
            self.storage.set_trial_intermediate_value(trial_id, unit, value)

    def wait(self, number: int) -> None:
        """The trial is paused: it keeps what it has, and goes on later."""
        self._set(number, TrialState.WAITING)

    def go_on(self, number: int) -> None:
        self._set(number, TrialState.RUNNING)

    def complete(self, number: int, values: Sequence[float]) -> None:
        self.go_on(number)
        self.optuna.tell(number, list(values))

    def end(self, number: int, state: str) -> None:
        """``pruned`` or ``failed``"""
        self.go_on(number)
        kinds = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        self.optuna.tell(number, state=kinds[state])

    def _id(self, number: int) -> int:
        study_id = self.storage.get_study_id_from_name(self.optuna.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def _set(self, number: int, state: TrialState) -> None:
        trial_id = self._id(number)
        if self.storage.get_trial(trial_id).state != state:
            self.storage.set_trial_state_values(trial_id, state=state)
