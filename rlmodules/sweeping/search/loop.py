"""The loop of a search: start jobs, look how far they are, tell the study, decide."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from rlmodules.sweeping.jobs import Job, Runner
from rlmodules.sweeping.search.board import TrialBoard
from rlmodules.sweeping.search.rules import HELD_OUT, Rule
from rlmodules.sweeping.search.study import RETRY_OF, Study
from rlmodules.sweeping.search.trials import Instance, Trial

SECONDS = 0.5
"""Between two looks at the jobs."""
ERRORS = "errors"
"""Attribute of a trial: what its seeds ended with."""
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass
class Search:
    """Runs ``n_trials`` trials of a study.

    Args:
        jobs: the job of each seed, of a trial's number and its setting.
        n_jobs: how many run at the same time.
        max_failure_rate: once more than this part of the trials that ended (of ``n_jobs`` at least)
            have failed, the search stops.
        board: shows what runs.
        retry_failed: whether trials that have failed before are tried again.
    """

    study: Study
    runner: Runner
    rule: Rule
    jobs: Callable[[int, Mapping[str, Any]], Mapping[int, Job]]
    n_trials: int
    n_jobs: int
    max_failure_rate: float
    board: TrialBoard
    retry_failed: bool = False
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        self.trials: list[Trial] = []
        self.board.trials = self.trials

    def run(self, stops: Callable[[], int] = lambda: 0) -> bool:
        """Go on until all trials have ended; False if somebody stopped it.

        Args:
            stops: how often somebody wanted to: once pauses all jobs, with which the same search
                goes on later, twice ends them.

        Raises:
            ValueError: too many have failed.
        """
        self.restore()
        self.board.restored()
        try:
            while self.step():
                if stops():
                    self.pause(stops)
                    return False
                time.sleep(self.seconds)
        except BaseException:
            self.pause(stops)
            raise
        return True

    def step(self) -> bool:
        """Look at all, decide, fill the slots; False when nothing is left to do."""
        self.look()
        self.decide()
        self.fill()
        self.board.look()
        return bool(self.running) or any(trial.is_open for trial in self.trials) or self.may_ask

    @property
    def running(self) -> list[Instance]:
        return [i for trial in self.trials for i in trial.instances if i.running is not None]

    @property
    def may_ask(self) -> bool:
        return sum(not trial.retried for trial in self.trials) < self.n_trials

    def restore(self) -> None:
        """Take up the trials that the study has."""
        self.study.forget_half_asked()
        known = self.study.trials()
        retried = {trial.user_attrs.get(RETRY_OF) for trial in known}
        for frozen in known:
            trial = self.add(frozen.number, frozen.params, frozen.user_attrs.get(RETRY_OF))
            trial.retried = frozen.number in retried
            if not frozen.state.is_finished():
                self.take_up(trial, frozen)
                continue
            trial.state = STATES[frozen.state.name]
            trial.values = tuple(frozen.values) if frozen.values else None
            for instance in trial.instances:
                errors = frozen.user_attrs.get(ERRORS, {})
                instance.error = errors.get(str(instance.seed), "")
        if self.retry_failed and self.rule.has_decided(self.study):
            self.board.say("Failed trials are not tried again: halving has gone on without them.")
        elif self.retry_failed:
            for frozen in known:
                self.try_again(frozen)
        self.rule.restore(self.study, self.trials)

    def take_up(self, trial: Trial, frozen: FrozenTrial) -> None:
        """Go on with a trial that had not ended."""
        self.study.go_on(trial.number)
        trial.reported = set(frozen.intermediate_values)
        for instance in trial.instances:
            instance.finish(list(self.study.asked.goals))

    def try_again(self, frozen: FrozenTrial) -> None:
        """A failed trial's setting, as a trial of its own with the same folders."""
        failed = next(trial for trial in self.trials if trial.number == frozen.number)
        if failed.state == "failed" and not failed.retried and not failed.same_as:
            failed.retried = True
            number, params = self.study.retry(frozen)
            self.add(number, params, frozen.user_attrs.get(RETRY_OF, frozen.number))

    def add(self, number: int, params: Mapping[str, Any], folders_of: int | None = None) -> Trial:
        """The trial with its jobs; one of a setting that was tried before has none of its own."""
        jobs = self.jobs(number if folders_of is None else folders_of, params)
        instances = [Instance(seed, job) for seed, job in jobs.items()]
        tried = [t for t in self.trials if not t.same_as and not t.retried]
        same = [t for t in tried if dict(t.params) == dict(params)]
        trial = Trial(number, params, instances, self.rule.first_goal, same[0] if same else None)
        self.trials.append(trial)
        return trial

    # ----------------------------------------------------------------- look

    def look(self) -> None:
        """See how far all are, and tell the study."""
        metrics = list(self.study.asked.goals)
        for trial in self.trials:
            for instance in trial.instances:
                if instance.running is None:
                    continue
                if (outcome := instance.running.poll()) is None:
                    instance.look()
                elif trial.is_open:
                    instance.ended(outcome, metrics)
                else:  # it was stopped
                    instance.running = None
            if trial.is_open:
                self.tell(trial)

    def tell(self, trial: Trial) -> None:
        """Report what is new of a trial, and end it if it has."""
        if trial.same_as:
            return self.tell_same(trial, trial.same_as)
        metric = self.study.metric
        curve = trial.mean_curve(metric)
        if new := set(curve) - trial.reported:
            self.note(trial)
            if len(self.study.asked.goals) == 1:  # Optuna takes none of several metrics
                for unit in sorted(new):
                    self.study.report(trial.number, unit, curve[unit])
            trial.reported |= new
        if error := trial.error:
            self.note(trial, **{ERRORS: {str(i.seed): i.error for i in trial.instances if i.error}})
            self.end(trial, "failed", error)
        elif (values := trial.mean()) is not None:
            self.note(trial)
            self.study.complete(trial.number, values)
            trial.state, trial.values = "complete", values
            self.board.end(trial)
            self.board.say(f"trial {trial.number} is complete: {self.said(values)}")

    def tell_same(self, trial: Trial, first: Trial) -> None:
        """A setting that was tried before has the outcome that it had."""
        if first.is_open:
            return
        self.study.note(trial.number, same_as=first.number)
        if first.state == "complete" and first.values is not None:
            self.study.complete(trial.number, first.values)
            trial.values = first.values
        else:
            self.study.end(trial.number, first.state)
        trial.state = first.state
        self.board.end(trial)

    def note(self, trial: Trial, **more: Any) -> None:
        """Keep each seed's curve, value and folder in the study."""
        curves = {
            str(seed): sorted(curve.items())
            for seed, curve in trial.curves(self.study.metric).items()
        }
        values = {str(i.seed): list(i.values) for i in trial.instances if i.values is not None}
        folders = {str(i.seed): i.job.folder.name for i in trial.instances}
        plain = {HELD_OUT: {seed: [list(p) for p in curve] for seed, curve in curves.items()}}
        self.study.note(trial.number, **plain, values=values, folders=folders, **more)

    # --------------------------------------------------------------- decide

    def decide(self) -> None:
        """Stop trials that lose, give the others their next goal; too many failures end all."""
        asked = not self.may_ask
        for trial in self.rule.decide(self.study, self.trials, asked):
            self.note(trial)
            self.end(trial, "pruned", f"stopped at {self.said(last_values(trial, self.study))}")
        counted = [trial for trial in self.trials if not trial.retried]
        failed = [trial for trial in counted if trial.state == "failed" and not trial.same_as]
        ended = [trial for trial in counted if not trial.is_open]
        if len(failed) > self.max_failure_rate * max(len(ended), 2, self.n_jobs):
            raise ValueError(
                f"{len(failed)} of {len(ended)} trials failed, more than"
                f" hydra.sweeper.max_failure_rate={self.max_failure_rate:g} allows:\n"
                + "\n".join(told_failures(failed))
            )

    def end(self, trial: Trial, state: str, why: str) -> None:
        self.study.end(trial.number, state)
        trial.state = state
        self.board.end(trial)
        self.board.say(f"trial {trial.number} {'failed' if state == 'failed' else 'is out'}: {why}")
        for instance in trial.instances:
            if instance.running is not None:
                instance.running.pause()

    def said(self, values: Sequence[float]) -> str:
        names = self.study.asked.goals
        return ", ".join(f"{n}={v:.4g}" for n, v in zip(names, values, strict=False))

    # ----------------------------------------------------------------- fill

    def fill(self) -> None:
        """Start what is due, in the order of trials; where that leaves slots, ask for more."""
        for trial in self.trials:
            if trial.is_open and trial.has_reached and not trial.same_as and not self.may_ask:
                self.study.wait(trial.number)  # (who asks would be given it back)
            for instance in trial.due():
                self.start(trial, instance)
        while self.may_ask and len(self.running) < self.n_jobs:
            number, params = self.study.propose()
            trial = self.add(number, params)
            for instance in trial.due():
                self.start(trial, instance)

    def start(self, trial: Trial, instance: Instance) -> None:
        if len(self.running) >= self.n_jobs:
            return
        self.study.go_on(trial.number)
        instance.tried_from = instance.done
        self.board.begin(instance.job)
        instance.running = self.runner.start(instance.job, pause_at=trial.goal)

    def pause(self, stops: Callable[[], int]) -> None:
        """Have all jobs save and stop, and wait until they have."""
        for instance in self.running:
            assert instance.running is not None
            instance.running.pause()
        while self.running:
            for instance in self.running:
                assert instance.running is not None
                if stops() > 1:
                    instance.running.kill()
                if instance.running.poll() is not None:
                    instance.running = None
            time.sleep(self.seconds)


def last_values(trial: Trial, study: Study) -> tuple[float, ...]:
    """The mean of the seeds where all were last evaluated; nothing if nowhere."""
    curve = trial.mean_curve(study.metric)
    return (curve[max(curve)],) if curve else ()


def told_failures(failed: Sequence[Trial]) -> list[str]:
    """A line for each: its last error line and its log."""
    lines = []
    for trial in failed:
        for instance in () if trial.retried else trial.instances:
            if instance.error:
                log = Path(instance.job.folder) / "job.log"
                lines.append(
                    f"  trial {trial.number}, seed {instance.seed}: {instance.error} ({log})"
                )
    return lines
