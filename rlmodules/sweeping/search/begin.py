"""A search from a composed config: checked whole before its first job starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from rlmodules.resuming.folder import held
from rlmodules.sweeping.jobs import Job, Runner
from rlmodules.sweeping.run_jobs import Interrupts
from rlmodules.sweeping.search.board import TrialBoard
from rlmodules.sweeping.search.ending import Compare, conclude
from rlmodules.sweeping.search.loop import SECONDS, Search
from rlmodules.sweeping.search.options import SearchOptions
from rlmodules.sweeping.search.rules import Halve, Rule, RunAll, StopLosers
from rlmodules.sweeping.search.space import Parameter, Space, read_space
from rlmodules.sweeping.search.study import Asked, Direction, Study, as_written, open_storage

LENGTH = "num_iterations"
"""What says how many units an online run has."""
ABOUT_THE_SWEEP = ("hydra", "sweep.", "paths.", "logger=", "logger.")
"""Overrides that may change when a search goes on."""


@dataclass(frozen=True)
class Plan:
    """What a search will do, as far as its options and the config decide it.

    Attributes:
        told: what all jobs are told besides the command line's.
    """

    options: SearchOptions
    space: Space
    goals: dict[str, Direction]
    rule: Rule
    how: dict[str, Any]


def make_plan(config: DictConfig, arguments: Sequence[str]) -> Plan:
    """
    Args:
        config: composed of the overrides that are not swept, ``hydra`` included.
        arguments: the command line's overrides.

    Raises:
        ValueError: an option is none, contradicts another, or cannot decide.
    """
    given = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    assert isinstance(given, dict)
    options = SearchOptions(**{str(k): v for k, v in given.items() if not str(k).startswith("_")})
    options = options.of_algorithm(str(config.hydra.runtime.choices.get("algo")))
    space = read_space(options.params, arguments, options.seeds)
    if "algo" in space.parameters:
        raise ValueError(
            "algo= cannot be searched over: each algorithm has options of its own. Search one after"
            " the other, or compare them by a sweep, without hparams_search="
        )
    goals = options.goals(config.optimized_metric, config.module)
    pruner = options.make_pruner(len(space.seeds))
    if options.min_units is not None:
        units = first_rung(options, config)
        space = with_evaluations(space, units, int(config.algo.eval_every))
        how = {"hydra.sweeper.min_units": units, "hydra.sweeper.n_trials": options.n_trials}
        return Plan(options, space, goals, Halve(units), how)
    options.sampler_for(space, "", 0)
    return Plan(options, space, goals, RunAll() if pruner is None else StopLosers(pruner), {})


def first_rung(options: SearchOptions, config: DictConfig) -> int:
    """
    Raises:
        ValueError: the run is no longer than that, or a quarter of it is not known beforehand.
    """
    total = config.algo.get(LENGTH)
    if options.min_units == "quarter":
        quarter = options.quarter if total is None else max(1, int(total) // 4)
        if quarter is None:
            raise ValueError(
                "hydra.sweeper.min_units=quarter is of algo.num_iterations, which"
                f" {config.module} has not: give it in optimizer steps, 20 for example"
            )
        return quarter
    units = int(options.min_units or 0)
    if total is not None and units >= int(total):
        raise ValueError(
            f"hydra.sweeper.min_units={units} is all of algo.num_iterations={total}: halve earlier"
        )
    return units


def with_evaluations(space: Space, units: int, every: int) -> Space:
    """``space`` with an evaluation where halving compares.

    Raises:
        ValueError: the command line asks for others.
    """
    option = "algo.eval_every"
    if units % every == 0:
        return space
    if option in space.parameters or any(o.startswith(f"{option}=") for o in space.fixed):
        raise ValueError(
            f"{option}={every} evaluates at other times than halving compares at:"
            f" hydra.sweeper.min_units={units} must be a multiple of it"
        )
    return Space(space.parameters, (*space.fixed, f"{option}={units}"), space.seeds)


def jobs_of(space: Space, folder: Path, number: int, params: Mapping[str, Any]) -> dict[int, Job]:
    """A trial's jobs by seed, each in ``FOLDER/NUMBER,SEED``."""
    jobs = {}
    for seed in space.seeds:
        overrides = (*space.overrides(params), f"seed={seed}")
        swept = {name.lstrip("+"): value for name, value in space.rounded(params).items()}
        swept |= {"seed": seed}
        jobs[seed] = Job(overrides, folder / f"trial={number:03d},seed={seed}", swept)
    return jobs


def corners(space: Space) -> list[tuple[str, ...]]:
    """Overrides that together have every parameter at its first and at its last value."""
    ends = [{name: _end(p, last) for name, p in space.parameters.items()} for last in (False, True)]
    return [space.overrides(params) for params in ends]


def _end(parameter: Parameter, last: bool) -> Any:
    d = parameter.distribution
    if choices := getattr(d, "choices", None):
        return choices[-1 if last else 0]
    return d.high if last else d.low  # type: ignore[attr-defined]


def search(
    plan: Plan,
    runner: Runner,
    folder: Path,
    program: Sequence[str] = ("python", "train.py"),
    console: Console | None = None,
    seconds: float = SECONDS,
    compare: Compare | None = None,
    retry_failed: bool = False,
) -> dict[str, Any] | None:
    """Run all of it; returns what ``optimization_results.yaml`` holds, None if somebody stopped it.

    Raises:
        ValueError: ``folder`` has the study of another search, more jobs are asked for than the
            launcher has slots, or too many trials failed.
    """
    options, console, folder = plan.options, console or Console(), folder.absolute()
    if options.n_jobs is not None and options.n_jobs > runner.slots:
        raise ValueError(
            f"hydra.sweeper.n_jobs={options.n_jobs}: the launcher has {runner.slots} slots:"
            f" hydra.launcher.slots={options.n_jobs}, or leave n_jobs out"
        )
    with held(folder):
        study = open_study(plan, folder)
        console.print(told_plan(plan, study), markup=False, highlight=False, soft_wrap=True)
        loop = Search(
            study,
            runner,
            plan.rule,
            partial(jobs_of, plan.space, folder),
            n_trials=options.n_trials,
            n_jobs=options.n_jobs or runner.slots,
            max_failure_rate=options.max_failure_rate,
            board=TrialBoard([], options.n_trials, study.metric, console),
            retry_failed=retry_failed,
            seconds=seconds,
        )
        with loop.board, Interrupts() as interrupts:
            if not loop.run(lambda: interrupts.count):
                return None
        return conclude(study, plan.space, loop.trials, folder, program, console, compare)


def open_study(plan: Plan, folder: Path) -> Study:
    """The study of ``folder``, or of the database that the options name."""
    options, space, shared = plan.options, plan.space, plan.options.storage is not None
    fixed = [override for override in space.fixed if not override.startswith(ABOUT_THE_SWEEP)]
    described = {name: p.described() for name, p in space.parameters.items()}
    asked = Asked(described, plan.goals, space.seeds, fixed, plan.how)
    storage = open_storage(options.storage, folder)
    name = options.study_name or "/".join(folder.parts[-2:])
    there = [study.study_name for study in storage.get_all_studies()]
    if not (options.study_name or shared) and len(there) == 1:
        name = there[0]  # the folder may have been moved
    salt = f"/{folder}" if options.study_name and shared else ""
    return Study(
        storage,
        name,
        asked,
        space.distributions,
        partial(options.sampler_for, space, salt),
        folder,
        shared,
    )


def told_plan(plan: Plan, study: Study) -> str:
    """One paragraph: how much will be run, and how much is there already."""
    seeds, n = len(plan.space.seeds), plan.options.n_trials
    ended = sum(trial.state.is_finished() for trial in study.trials())
    begun = len(study.trials()) - ended
    goals = ", ".join(f"{direction} {name}" for name, direction in plan.goals.items())
    lines = [f"Search: {n} trials of {seeds} seed{'s' if seeds > 1 else ''}, {goals}"]
    for name, parameter in plan.space.parameters.items():
        lines.append(f"  {name}: {as_written(parameter.described())}")
    if isinstance(plan.rule, Halve):
        lines.append(
            f"  all run for {plan.rule.min_units} units, the better half twice as long, ..."
        )
    elif plan.options.pruner is not None and not isinstance(plan.rule, StopLosers):
        lines.append(
            f"  no setting is stopped early: {seeds} seed{'s' if seeds > 1 else ''} cannot decide"
            f" (all worse: p = {0.5**seeds:g}, hydra.sweeper.pruner.p_threshold)"
        )
    if ended or begun:
        lines.append(f"  going on: {ended} trials have ended, {begun} are under way")
    return "\n".join(lines)
