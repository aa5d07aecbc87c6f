"""Folders of runs, written as runs leave them, without training any."""

import json

import yaml

from rlmodules.reports.environment import RUN
from rlmodules.reports.files import CONFIG, ERROR, JOB, PROGRESS, REPORT, RESULT

METRIC = "val/reward"


def nest(options):
    """``{"algo.lr": 1}`` -> ``{"algo": {"lr": 1}}``"""
    tree = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    return tree


def make_run(
    folder,
    value=None,
    seed=0,
    *,
    overrides=(),
    settings=None,
    choices=None,
    raw=None,
    metric=METRIC,
    history=(),
    before=None,
    after=None,
    seconds=10.0,
    status="done",
    report=None,
    number=None,
):
    """A run's folder with the metric at ``value``; nothing of the run's end unless it is done."""
    folder.mkdir(parents=True)
    options = {
        "seed": seed,
        "algo.seed": seed,
        "algo.learning_rate": 5e-5,
        "module": "rlmodules.PPO",
    }
    options |= {"paths.output_dir": str(folder), "optimized_metric": metric, **(settings or {})}
    (folder / CONFIG).write_text(yaml.safe_dump(nest(options)))
    hydra = folder / ".hydra"
    hydra.mkdir()
    told = ["algo=ppo", *overrides, f"seed={seed}"]
    (hydra / "overrides.yaml").write_text(yaml.safe_dump(told))
    chosen = {"algo": "ppo", "env": "text", "hydra/launcher": "basic"} | (choices or {})
    job = {"num": "???" if number is None else number}
    hydra_yaml = {"hydra": {"runtime": {"choices": chosen}, "job": job}}
    (hydra / "hydra.yaml").write_text(yaml.safe_dump(hydra_yaml))
    unresolved = nest(options | {"algo.seed": "${seed}"} | (raw or {}))
    (hydra / CONFIG).write_text(yaml.safe_dump(unresolved))
    if status == "failed":
        (folder / ERROR).write_text("Traceback (most recent call last):\n\nValueError: too large\n")
    if status == "done":
        after = ({} if value is None else {metric: value}) | (after or {})
        said = {"before": before or {}, "after": after, "seconds": seconds, "global_step": 4}
        said |= {"history": list(history) or [{"iteration": 1.0}]} | (report or {})
        (folder / REPORT).write_text(json.dumps(said))
    return folder


def write_progress(folder, done, total, *, metrics=None, held_out=(), seconds=5.0):
    told = {"unit": "iteration", "done": done, "total": total, "metrics": metrics or {}}
    told |= {"held_out": list(held_out), "seconds": seconds}
    (folder / PROGRESS).write_text(json.dumps(told))


def write_result(folder, value, metric=METRIC):
    (folder / RESULT).write_text(json.dumps({"metric": metric, "value": value}))


def write_job(folder, *overrides):
    folder.mkdir(parents=True, exist_ok=True)
    said = {"overrides": list(overrides), "swept": {}, "argv": []}
    (folder / JOB).write_text(json.dumps(said))
    return folder


def write_start(folder, **said):
    (folder / RUN).write_text(json.dumps(said))
