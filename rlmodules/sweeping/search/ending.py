"""The end of a search: the best setting, or the front, on the terminal and in files."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.study import Study as OptunaStudy
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table

from datamodules.atomic import write_text
from rlmodules.sweeping.jobs import Job
from rlmodules.sweeping.search.loop import told_failures
from rlmodules.sweeping.search.rules import best_complete
from rlmodules.sweeping.search.space import Space
from rlmodules.sweeping.search.study import Study
from rlmodules.sweeping.search.trials import Trial

Compare = Callable[[Sequence[Job]], object]
ORDER = ("complete", "pruned", "failed", "open")
RESULTS = "optimization_results.yaml"
"""The best setting, in the form that Hydra's own Optuna sweeper writes it in."""


def front(study: OptunaStudy) -> list[FrozenTrial]:
    """The settings that no other is better than in all, best of the first metric first."""
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    unique = {tuple(sorted(trial.params.items())): trial for trial in study.best_trials[::-1]}
    return sorted(unique.values(), key=lambda trial: (sign * trial.values[0], trial.number))


def results(study: Study, space: Space) -> dict[str, Any]:
    """
    Raises:
        ValueError: no trial ran to its end.
    """
    if len(study.asked.goals) > 1:
        trials = front(study.optuna)
        solutions = [{"params": space.rounded(t.params), "values": list(t.values)} for t in trials]
        if not solutions:
            raise ValueError("no trial ran to its end")
        return {"name": "optuna", "solutions": solutions}
    best = best_complete(study)
    if best is None:
        raise ValueError("no trial ran to its end")
    return {
        "name": "optuna",
        "best_params": space.rounded(best.params),
        "best_value": best.values[0],
    }


def command(program: Sequence[str], space: Space, params: Mapping[str, Any]) -> str:
    """What trains this setting again, with the first seed."""
    return shlex.join([*program, *space.overrides(params), f"seed={space.seeds[0]}"])


def conclude(
    study: Study,
    space: Space,
    trials: Sequence[Trial],
    folder: Path,
    program: Sequence[str],
    console: Console,
    compare: Compare | None = None,
) -> dict[str, Any]:
    """Write ``optimization_results.yaml`` and say what was found; returns what was written.

    Args:
        compare: prints and writes how the settings of these jobs compare.
    """
    found, trials = results(study, space), [trial for trial in trials if not trial.retried]
    write_text(folder / RESULTS, OmegaConf.to_yaml(OmegaConf.create(found)))
    if compare:
        compare([i.job for t in trials if not t.same_as for i in t.instances])
    if compare is None or len(study.asked.goals) > 1:
        console.print(trials_table(study, space, trials))
    console.print(f"\n{len(trials)} trials: {counted(trials)}.", highlight=False)
    if failures := told_failures([t for t in trials if t.state == "failed"]):
        console.print("[bold]Failed:[/]")
        console.print("\n".join(failures), markup=False, highlight=False, soft_wrap=True)
    if "solutions" in found:
        solutions = found["solutions"]
        console.print(f"\n[bold]On the front: {len(solutions)}[/], as none is better in all.")
        for solution in solutions:
            said = ", ".join(
                f"{n}={v:.4g}" for n, v in zip(study.asked.goals, solution["values"], strict=True)
            )
            console.print(f"  {said}", markup=False, highlight=False)
            _paste(console, command(program, space, solution["params"]))
        return found
    count = len(space.seeds)
    over = f", the mean over {count} seeds" if count > 1 else ""
    console.print(f"\n[bold]The best setting[/]: {study.metric}={found['best_value']:.4g}{over}.")
    _paste(console, command(program, space, found["best_params"]))
    best = best_complete(study)
    assert best is not None
    first = best.user_attrs.get("same_as", best.number)
    names = dict(study.optuna.trials[first].user_attrs.get("folders", {}))
    for name in names.values():
        console.print(f"  its run: {folder / name}", markup=False, highlight=False, soft_wrap=True)
    return found


def _paste(console: Console, line: str) -> None:
    console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)


def counted(trials: Sequence[Trial]) -> str:
    """``11 complete, 8 pruned, 1 failed``"""
    counts = Counter(trial.state for trial in trials if not trial.same_as)
    said = [f"{counts[state]} {state}" for state in ORDER if counts[state]]
    same = sum(trial.same_as is not None for trial in trials)
    return ", ".join([*said, *([f"{same} of settings that were there before"] if same else [])])


def trials_table(study: Study, space: Space, trials: Sequence[Trial]) -> Table:
    """A row a trial, the best first."""
    table = Table(title=f"{len(trials)} trials of {len(space.seeds)} seeds")
    names = list(space.parameters)
    for name in ("trial", *(name.rpartition(".")[2] for name in names), *study.asked.goals, "end"):
        table.add_column(name, overflow="fold")
    sign = -1 if study.direction == "maximize" else 1

    def rank(trial: Trial) -> tuple[Any, ...]:
        return (
            ORDER.index(trial.state),
            sign * trial.values[0] if trial.values else 0,
            trial.number,
        )

    for trial in sorted(trials, key=rank):
        params = [short(trial.params[name]) for name in names]
        values = [f"{value:.4g}" for value in trial.values or ()]
        values += [""] * (len(study.asked.goals) - len(values))
        end = f"as {trial.same_as.number}" if trial.same_as else trial.state
        table.add_row(str(trial.number), *params, *values, end)
    return table


def short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
